"""What both ends of `restore_tiers` know: the arrays, the run's key, and one write of them."""

from __future__ import annotations

from behemoth.agent.peers.identity import PeerIdentity
from behemoth.base.ids import NodeId, Rank, RunUid, Step, WriteId
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.spec.mesh import Mesh

STEP, WRITE_ID = Step(1), WriteId("a1-1")
KEY = "0" * 64
ASKER, ASKED = NodeId("asker"), NodeId("asked")
BLOCK_BYTES = 8 << 20
"""What raw contenders move at once, as ours do."""


def layout(num_layers: int) -> Layout:
    """64 MiB for each layer, all on one rank."""
    names = (f"layers.{number}.w" for number in range(num_layers))
    return Layout(
        mesh=Mesh(), arrays=tuple(ArraySpec(name=name, dtype="float32", shape=(4096, 4096)) for name in names)
    )


def plan(num_layers: int) -> RankPlan:
    return plan_rank(layout(num_layers), Rank(0))


def identity(node: NodeId) -> PeerIdentity:
    return PeerIdentity(run_uid=RunUid("bench"), node=node, key=KEY)
