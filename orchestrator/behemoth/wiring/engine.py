"""The engine of `behemoth run`: what gives it nodes and starts their agents. A Ray of our own, a Ray that is there, or
plain processes of this machine. The neighbour is `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from behemoth.app.start_run import node_names
from behemoth.base.errors import Invalid
from behemoth.base.ids import NodeId
from behemoth.ports import Runtime
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.rayrt.runtime import embed_ray, join_ray
from behemoth.spec.run import TrainingRun

Engine: TypeAlias = Literal["embedded-ray", "joined-ray", "processes"]
WAITING: dict[Engine, str] = {
    "embedded-ray": "starting Ray",
    "joined-ray": "joining Ray",
    "processes": "starting processes",
}
"""What is waited for until it is there."""


def chosen_nodes(run: TrainingRun, found: Sequence[NodeId]) -> list[NodeId]:
    """Those that the run asks for. Raises Invalid when the engine has fewer."""
    wanted = run.nodes.count + run.nodes.spares
    if len(found) < wanted:
        raise Invalid(
            f"nodes: expected {wanted} ({run.nodes.count} and {run.nodes.spares} spares), got {len(found)}",
            hint="join a Ray with more nodes, or lower spec.nodes",
            code="too-few-nodes",
        )
    return list(found[:wanted])


def open_runtime(engine: Engine, run: TrainingRun, ray_address: str) -> Runtime:
    match engine:
        case "embedded-ray":
            return embed_ray(node_names(run))
        case "joined-ray":
            return join_ray(ray_address)
        case "processes":
            return SubprocessRuntime(node_names(run))
