"""The body applies what is fresh, once and for all, and refuses the rest; it gives no node two slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import pytest

from behemoth.app.body import AgentProgram, LocalBody
from behemoth.app.machines import StartOrder, StopOrder
from behemoth.base.errors import Internal
from behemoth.base.ids import Attempt, Epoch, NodeId, RunUid, Slot, Step, WriteId
from behemoth.fleet.muster import SaveMuster
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    CommitRef,
    Delete,
    Effect,
    Evict,
    Place,
    Provision,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import Committed, Tick
from behemoth.state.fence import Fence
from behemoth.wire.commands import AbortSave, CommitSeen, GoAhead, RestoreFrom, SaveAt
from behemoth.wire.reports import ReceiptBatch
from reconcile.player import Player, training

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
DOMAINS = {A: 0, B: 0, C: 1}
W1, W2 = WriteId("a1-1"), WriteId("a1-2")
REF = CommitRef(step=Step(10), write_id=W1, size_bytes=1)


class FakeFleet:
    """Agents that were admitted and expelled, the gang, and saves, as a fleet keeps them."""

    def __init__(self) -> None:
        self.expected: dict[NodeId, int] = {}
        self.expelled: dict[NodeId, tuple[int, str]] = {}
        self.gang: tuple[Attempt, tuple[NodeId, ...]] | None = None
        self.started: tuple[RestoreFrom | None, bool, tuple[int, ...], int] | None = None
        self.stopped: tuple[Attempt, str, bool] | None = None
        self.saves: dict[WriteId, SaveMuster] = {}
        self.agreed: set[WriteId] = set()
        self.ended: dict[WriteId, type[CommitSeen | AbortSave]] = {}

    def expect(self, node: NodeId, incarnation: int) -> str:
        self.expected[node] = max(incarnation, self.expected.get(node, 0))
        return f"token of {node} {incarnation}"

    def expel(self, node: NodeId, incarnation: int, reason: str) -> None:
        self.expelled[node] = (incarnation, reason)

    def adopt_gang(self, attempt: Attempt, nodes: Sequence[NodeId]) -> None:
        self.gang, self.started = (attempt, tuple(nodes)), None

    def start_gang(
        self,
        fence: Fence,
        nodes: Sequence[NodeId],
        *,
        restore: RestoreFrom | None,
        dump_stacks: bool,
        domains: Sequence[int],
        record_bytes: int,
    ) -> None:
        self.gang = (fence.attempt, tuple(nodes))
        self.started = (restore, dump_stacks, tuple(domains), record_bytes)

    def stop_gang(self, fence: Fence, reason: str, *, dump_stacks: bool) -> None:
        self.stopped = (fence.attempt, reason, dump_stacks)

    def save(self, command: SaveAt) -> None:
        assert self.gang is not None
        attempt, nodes = self.gang
        self.saves.setdefault(command.write_id, SaveMuster(command.write_id, attempt, frozenset(nodes)))

    def agree(self, command: GoAhead) -> None:
        self.agreed.add(command.write_id)

    def save_of(self, write_id: WriteId) -> SaveMuster | None:
        return self.saves.get(write_id)

    def saves_in_flight(self) -> list[WriteId]:
        return list(self.saves)

    def end_save(self, command: CommitSeen | AbortSave) -> None:
        self.saves.pop(command.write_id, None)
        self.ended[command.write_id] = type(command)

    def look(self) -> Tick:
        return Tick()


class FakeMachines:
    """Agents that were started and stopped. A second order for one incarnation does nothing, as runtimes promise."""

    def __init__(self) -> None:
        self.started: dict[tuple[NodeId, int], dict[str, str]] = {}
        self.stopped: set[tuple[NodeId, int]] = set()

    def order(self, order: StartOrder | StopOrder) -> None:
        match order:
            case StartOrder():
                self.started[order.node, order.incarnation] = order.env
            case StopOrder():
                self.stopped.add((order.node, order.incarnation))


class FakeDesk:
    """Commits once, and knows what it was asked to remove. `cleaned` holds what was in flight at each clean-up."""

    def __init__(self) -> None:
        self.committed: dict[WriteId, tuple[Step, Attempt, bytes | None, tuple[bytes, ...]]] = {}
        self.given_up: dict[WriteId, str] = {}
        self.rejected: dict[WriteId, str] = {}
        self.deleted: set[WriteId] = set()
        self.cleaned: list[tuple[WriteId, ...]] = []

    def commit(
        self, *, step: Step, write_id: WriteId, attempt: Attempt, layout: bytes | None, receipts: Sequence[bytes]
    ) -> None:
        self.committed[write_id] = (step, attempt, layout, tuple(receipts))

    def record_bytes(self, ref: CommitRef) -> int:
        return 77 if ref == REF else 0

    def give_up(self, write_id: WriteId, reason: str) -> None:
        self.given_up[write_id] = reason

    def reject(self, ref: CommitRef, reason: str) -> None:
        self.rejected[ref.write_id] = reason

    def delete(self, refs: Sequence[CommitRef]) -> None:
        self.deleted |= {ref.write_id for ref in refs}

    def clean(self, in_flight: Callable[[], Collection[WriteId]]) -> None:
        self.cleaned.append(tuple(in_flight()))


class World:
    """A body of a run at epoch 2 and attempt 3, around fakes."""

    def __init__(self) -> None:
        self.fleet, self.machines, self.desk = FakeFleet(), FakeMachines(), FakeDesk()
        self.body = LocalBody(
            fleet=self.fleet,  # type: ignore[arg-type]
            machines=self.machines,  # type: ignore[arg-type]
            desk=self.desk,  # type: ignore[arg-type]
            agent=AgentProgram(argv=("agent",), env={"KEY": "v"}, log_dir=Path("/logs")),
            domains=DOMAINS,
            witnesses=(),
        )

    def state(self) -> object:
        """All that effects can change. A clean-up removes only what is rubbish, so how often it ran is no state."""
        fleet, desk = self.fleet, self.desk
        return (
            (dict(fleet.expected), dict(fleet.expelled), fleet.gang, fleet.started, fleet.stopped),
            ({name: id(save) for name, save in fleet.saves.items()}, set(fleet.agreed), dict(fleet.ended)),
            ({key: dict(env) for key, env in self.machines.started.items()}, set(self.machines.stopped)),
            (dict(desk.committed), dict(desk.given_up), dict(desk.rejected), set(desk.deleted)),
            dict(self.body._holders),
        )


def fence(attempt: int = 3, *, epoch: int = 2, run: str = "run") -> Fence:
    return Fence(run_uid=RunUid(run), epoch=Epoch(epoch), attempt=Attempt(attempt))


NOW = fence()
EFFECTS: tuple[Effect, ...] = (
    Provision(fence=NOW, node=C, incarnation=2),
    Evict(fence=NOW, node=A, incarnation=1, reason="silent"),
    Place(fence=NOW, holders=(B, A)),
    Replace(fence=NOW, slot=Slot(0), node=A, spare=C, reason="lost"),
    Start(fence=NOW, restore=REF, reason="test"),
    Stop(fence=NOW, reason="test"),
    Save(fence=NOW, step=Step(20), write_id=W2, is_last=False),
    Agree(fence=NOW, write_id=W1),
    Commit(fence=NOW, step=Step(10), write_id=W1),
    Abort(fence=NOW, write_id=W1, reason="late"),
    Reject(fence=NOW, commit=REF, reason="corrupt"),
    Delete(fence=NOW, commits=(REF,)),
)
QUIET = (*EFFECTS, Close(fence=NOW, outcome="suspended", reason="as asked"))


def name_of(value: object) -> str:
    return type(value).__name__


def under_way() -> World:
    """Nodes a and b train in attempt 3, and the save W1 is in flight."""
    world = World()
    for effect in (
        Place(fence=fence(0), holders=(A, B)),
        Start(fence=NOW, restore=None, reason="test"),
        Save(fence=NOW, step=Step(10), write_id=W1, is_last=False),
    ):
        world.body.apply(effect)
    return world


@pytest.mark.parametrize("old", [fence(2), fence(3, epoch=1), fence(9, epoch=1), fence(3, run="other")], ids=str)
@pytest.mark.parametrize("effect", QUIET, ids=name_of)
def test_an_effect_of_another_run_an_older_coordinator_or_an_older_attempt_does_nothing(
    effect: Effect, old: Fence
) -> None:
    world = under_way()
    before, cleaned = world.state(), list(world.desk.cleaned)
    world.body.apply(msgspec.structs.replace(effect, fence=old))
    assert world.state() == before
    assert world.desk.cleaned == cleaned
    world.body.apply(Agree(fence=NOW, write_id=W2))
    assert W2 in world.fleet.agreed, "what is refused must not raise the fence"


@pytest.mark.parametrize("effect", EFFECTS, ids=name_of)
def test_every_effect_does_something_and_does_it_once(effect: Effect) -> None:
    world = under_way()
    before = world.state()
    world.body.apply(effect)
    after = world.state()
    assert after != before
    world.body.apply(effect)
    assert world.state() == after


def test_a_whole_decision_applied_again_by_a_successor_of_the_process_changes_nothing() -> None:
    """The journal holds a decision before any of it is applied, so all of it may be applied twice."""
    decision = (
        Evict(fence=NOW, node=A, incarnation=1, reason="lost"),
        Abort(fence=NOW, write_id=W1, reason="its attempt ended"),
        Provision(fence=NOW, node=A, incarnation=2),
        Replace(fence=NOW, slot=Slot(0), node=A, spare=C, reason="lost"),
        Start(fence=fence(4), restore=None, reason="node a is lost"),
    )
    world = under_way()
    for effect in decision:
        world.body.apply(effect)
    after = world.state()
    assert world.fleet.gang == (Attempt(4), (C, B))
    for effect in decision:
        world.body.apply(effect)
    assert world.state() == after


def test_a_new_term_outranks_every_attempt_of_the_former_one() -> None:
    world = under_way()
    world.body.apply(Agree(fence=fence(3, epoch=3), write_id=W1))
    before = world.state()
    world.body.apply(Start(fence=fence(4, epoch=2), restore=None, reason="zombie"))
    assert world.state() == before


@pytest.mark.parametrize(
    "effect",
    [
        Replace(fence=NOW, slot=Slot(0), node=A, spare=B, reason="two slots"),
        Replace(fence=NOW, slot=Slot(1), node=B, spare=A, reason="two slots"),
        Place(fence=NOW, holders=(C, C)),
    ],
    ids=str,
)
def test_a_node_is_never_given_two_slots(effect: Effect) -> None:
    world = under_way()
    with pytest.raises(Internal, match="expected at most one slot") as told:
        world.body.apply(effect)
    assert told.value.code == "two-slots"
    holders = list(world.body._holders.values())
    assert len(set(holders)) == len(holders)


def test_an_agent_is_started_with_its_own_name_number_and_token() -> None:
    world = World()
    world.body.apply(Provision(fence=NOW, node=C, incarnation=2))
    assert world.fleet.expected == {C: 2}
    assert world.machines.started == {
        (C, 2): {
            "KEY": "v",
            "BEHEMOTH_NODE": "c",
            "BEHEMOTH_INCARNATION": "2",
            "BEHEMOTH_TOKEN": "token of c 2",
            "BEHEMOTH_AGENT_LOG": "/logs/agent-c.log",
        }
    }


def test_an_evicted_agent_is_not_listened_to_and_its_process_is_ended() -> None:
    world = under_way()
    world.body.apply(Evict(fence=NOW, node=A, incarnation=1, reason="silent"))
    assert world.fleet.expelled == {A: (1, "silent")}
    assert world.machines.stopped == {(A, 1)}


def test_a_commit_carries_the_receipts_and_the_attempt_of_its_write_although_another_attempt_runs() -> None:
    world = under_way()
    world.fleet.saves[W1].count(
        A, ReceiptBatch(attempt=Attempt(3), write_id=W1, num_ranks=1, receipts=(b"r",), layout=b"layout")
    )
    world.body.apply(Start(fence=fence(4), restore=None, reason="test"))
    world.body.apply(Commit(fence=fence(4), step=Step(10), write_id=W1))
    assert world.desk.committed == {W1: (10, 3, b"layout", (b"r",))}


def test_a_commit_whose_receipts_went_with_a_former_coordinator_is_given_up() -> None:
    world = World()
    world.body.apply(Commit(fence=NOW, step=Step(10), write_id=W1))
    assert world.desk.given_up == {W1: "commit: its receipts went with a former coordinator"}
    assert world.desk.committed == {}


def test_the_gang_restores_what_was_decided_and_tells_its_stacks_when_that_is_wanted() -> None:
    world = under_way()
    world.body.apply(Start(fence=fence(4), restore=REF, reason="hang", dump_stacks=True))
    assert world.fleet.gang == (4, (A, B))
    assert world.fleet.started == (RestoreFrom(step=REF.step, write_id=W1), True, (0, 0), 77)
    world.body.apply(Stop(fence=fence(4), reason="no step", dump_stacks=True))
    assert world.fleet.stopped == (4, "no step", True)


def witnessed(world: World, write_id: WriteId) -> None:
    after = training().obs
    told = CommitRef(step=Step(30), write_id=write_id, size_bytes=1)
    world.body.witness(Committed(commit=told), after, after)


@pytest.mark.parametrize(
    "effect",
    [Abort(fence=NOW, write_id=W1, reason="late"), Reject(fence=NOW, commit=REF, reason="corrupt")],
    ids=name_of,
)
def test_rubbish_is_removed_when_a_save_is_given_up_and_once_more_after_the_next_commit(effect: Effect) -> None:
    world = under_way()
    world.body.apply(Save(fence=NOW, step=Step(30), write_id=W2, is_last=False))
    witnessed(world, WriteId("a1-0"))
    assert world.desk.cleaned == []
    world.body.apply(effect)
    in_flight = (W2,) if isinstance(effect, Abort) else (W1, W2)
    assert world.desk.cleaned == [in_flight]
    witnessed(world, W2)
    assert world.desk.cleaned == [in_flight, tuple(name for name in in_flight if name != W2)]
    witnessed(world, W2)
    assert len(world.desk.cleaned) == 2


def test_agents_hear_of_a_commit_and_its_save_is_over() -> None:
    world = under_way()
    witnessed(world, W1)
    assert world.fleet.ended == {W1: CommitSeen}
    assert world.fleet.saves == {}


def test_every_witness_sees_what_was_folded() -> None:
    seen: list[object] = []
    fleet, machines, desk = FakeFleet(), FakeMachines(), FakeDesk()
    body = LocalBody(
        fleet=fleet,  # type: ignore[arg-type]
        machines=machines,  # type: ignore[arg-type]
        desk=desk,  # type: ignore[arg-type]
        agent=AgentProgram(argv=("agent",), env={}, log_dir=Path("/logs")),
        domains=DOMAINS,
        witnesses=(lambda *told: seen.append(told), lambda *told: seen.append(told)),
    )
    after = training().obs
    body.witness(Tick(), None, after)
    assert seen == [(Tick(), None, after)] * 2


def test_resuming_takes_up_agents_holders_and_the_gang_of_an_earlier_process() -> None:
    player = training()
    player.lose("b")
    world = World()
    world.body.resume(player.obs)
    assert world.fleet.gang == (player.obs.attempt, (A, C))
    assert world.fleet.started is None
    assert world.fleet.expected == {name: node.incarnation for name, node in player.obs.nodes.items()}
    holder_again = Replace(fence=player.obs.fence, slot=Slot(0), node=A, spare=C, reason="two slots")
    with pytest.raises(Internal, match="expected at most one slot"):
        world.body.apply(holder_again)


def test_resuming_a_run_that_was_never_placed_adopts_no_gang() -> None:
    player = Player()
    player.begin()
    world = World()
    world.body.resume(player.obs)
    assert world.fleet.gang is None
    assert set(world.fleet.expected) == {A, B, C}


def test_a_look_is_the_fleets_and_closing_leaves_everything_to_the_process() -> None:
    world = under_way()
    before = world.state()
    world.body.apply(QUIET[-1])
    assert world.state() == before
    assert world.body.look() == Tick()
