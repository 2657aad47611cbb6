"""What a live view of a run shows, as plain values: made from the observation and the fleet a few times a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from behemoth.base.ids import NodeId, Slot
from behemoth.fleet.progress import Vitals
from behemoth.state.observation import Observation
from behemoth.state.status import RunStatus

NodeCondition = Literal["working", "spare", "late", "coming", "lost", "released"]
"""`released`: the run has ended, or nobody leads it, so it has no use for the node any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One cell of the node grid."""

    name: NodeId
    slot: Slot | None
    condition: NodeCondition
    incarnation: int
    silent_us: int | None
    """Since the agent was last heard; None without a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The run at `now_us`."""

    name: str
    now_us: int
    opened_us: int
    total_steps: int
    status: RunStatus
    vitals: Vitals | None
    step_us: int
    """Estimated time of a step, 0 when unknown."""
    nodes: tuple[NodeView, ...]


def snapshot(
    name: str,
    observation: Observation,
    status: RunStatus,
    *,
    now_us: int,
    vitals: Vitals | None,
    connected: Mapping[NodeId, int],
    is_led: bool = True,
) -> Snapshot:
    """Nodes in placement order. `is_led`: whether a process leads the run now; False for a view of the journal of a run
    that none leads."""
    nodes = sorted(observation.nodes.items(), key=lambda item: item[1].order)
    return Snapshot(
        name=name,
        now_us=now_us,
        opened_us=observation.opened_us,
        total_steps=observation.config.total_steps,
        status=status,
        vitals=vitals,
        step_us=observation.step_us,
        nodes=tuple(
            NodeView(
                name=node,
                slot=known.slot,
                condition=_condition(observation, node) if is_led else "released",
                incarnation=known.incarnation,
                silent_us=connected.get(node),
            )
            for node, known in nodes
        ),
    )


def _condition(observation: Observation, name: NodeId) -> NodeCondition:
    if observation.outcome is not None:
        return "released"
    node = observation.nodes[name]
    if node.state == "coming":
        return "coming"
    if node.state != "present":
        return "lost" if node.incarnation else "coming"
    if node.late_us is not None:
        return "late"
    return "working" if node.slot is not None else "spare"
