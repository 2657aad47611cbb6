"""A rank's staged memory with a verified snapshot in it, as a node has it when a save is committed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from behemoth.agent.memories import Memories
from behemoth.agent.peers.identity import PeerIdentity
from behemoth.base.ids import NodeId, Rank, RunUid, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.spec.mesh import Mesh

RUN, KEY = RunUid("run-1"), "k" * 64
NUM_RANKS = 2
LAYOUT = Layout(
    mesh=Mesh(dp=NUM_RANKS, edp=NUM_RANKS),
    arrays=(
        ArraySpec(name="w", dtype="uint8", shape=(3 << 20,), flat_over="dp"),
        ArraySpec(name="v", dtype="uint8", shape=(1000,)),
    ),
)


def identity(node: str, *, key: str = KEY, run_uid: str = RUN) -> PeerIdentity:
    return PeerIdentity(run_uid=RunUid(run_uid), node=NodeId(node), key=key)


@dataclass
class StagedRank:
    """Owns its memory, as an agent does."""

    rank: Rank
    plan: RankPlan
    fd: int
    arena: Arena

    def save(self, generation: int, write_id: str, step: int) -> bytes:
        """Stage random bytes and verify them; all of the data area."""
        data = self.arena.begin(generation, WriteId(write_id), Step(step), self.plan.layout_digest)
        content = np.random.default_rng([step, self.rank]).bytes(len(data))
        data[:] = content
        snapshot = self.arena.seal(generation)
        crcs = [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in self.plan.spans]
        self.arena.record_crcs(generation, snapshot.sequence, crcs)
        return content

    def close(self) -> None:
        self.arena.close()
        os.close(self.fd)


def staged_rank(memories: Memories, rank: int = 0, *, layout: Layout = LAYOUT) -> StagedRank:
    """Fresh memory of a rank, known to `memories`."""
    plan = plan_rank(layout, Rank(rank))
    fd = os.memfd_create(f"staged-{rank}", os.MFD_ALLOW_SEALING)
    memories.mapped(Rank(rank), fd, new=plan)
    return StagedRank(Rank(rank), plan, fd, Arena.open(fd))
