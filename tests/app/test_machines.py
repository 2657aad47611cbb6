"""The runtime's own thread carries out orders and tells what comes of them."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from behemoth.app.machines import Machines, StartOrder, StopOrder
from behemoth.base.errors import Unavailable
from behemoth.base.ids import NodeId
from behemoth.ports import NodeGone
from behemoth.state.evidence import Evidence, NodeLost, ProvisionFailed

A, B = NodeId("a"), NodeId("b")
WAIT_S = 60.0


class FakeRuntime:
    """Starts anything but `b`; what `losses` holds is gone; cannot say the first time it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.losses: queue.SimpleQueue[NodeGone] = queue.SimpleQueue()
        self._has_answered = False

    def nodes(self) -> Sequence[NodeId]:
        return [A, B]

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        self.calls.append(f"start {node} {incarnation} {argv[0]} {env['KEY']}")
        if node == B:
            raise Unavailable("node b: expected a machine, got none")

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        self.calls.append(f"stop {node} {incarnation}")

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        if not self._has_answered:
            self._has_answered = True
            raise Unavailable("runtime: expected an answer, got none")
        try:
            return [self.losses.get(timeout=timeout_s)]
        except queue.Empty:
            return []

    def close(self) -> None:
        self.calls.append("close")


def order(node: NodeId) -> StartOrder:
    return StartOrder(node=node, incarnation=1, argv=("agent",), env={"KEY": "v"})


def test_orders_are_carried_out_in_turn_and_closing_waits_for_them() -> None:
    runtime = FakeRuntime()
    machines = Machines(runtime, lambda _: None)
    machines.start()
    machines.order(order(A))
    machines.order(StopOrder(node=A, incarnation=1))
    machines.close()
    assert runtime.calls == ["start a 1 agent v", "stop a 1", "close"]


def test_a_start_that_fails_and_a_loss_become_evidence_although_the_runtime_could_not_say_at_first() -> None:
    told: queue.SimpleQueue[Evidence] = queue.SimpleQueue()
    runtime = FakeRuntime()
    machines = Machines(runtime, told.put)
    machines.start()
    machines.order(order(B))
    failed = told.get(timeout=WAIT_S)
    assert failed == ProvisionFailed(node=B, incarnation=1, reason="node b: expected a machine, got none")
    runtime.losses.put(NodeGone(node=A, incarnation=3, reason="power"))
    assert told.get(timeout=WAIT_S) == NodeLost(node=A, incarnation=3, reason="power")
    machines.close()


def test_closing_what_was_never_started_releases_the_runtime() -> None:
    runtime = FakeRuntime()
    Machines(runtime, lambda _: None).close()
    assert runtime.calls == ["close"]
