"""A worker that cannot take its state over ends with an error that names rank, stage and object."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Corrupt
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import AS_SAVED
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.staging import stage
from behemoth.sdk import State
from behemoth.sdk.restoring import restored
from behemoth.sdk.state import BoundState
from behemoth.spec.mesh import Mesh
from behemoth.wire.session import Declare, Ready


@dataclass
class AgentOf:
    """Gives the same staging memory at each declaration, and says the same of it."""

    fd: int
    ready: Ready
    heard: list[Declare] = field(default_factory=list)

    def send(self, message: Declare, *, timeout_s: float) -> None:  # noqa: ARG002
        self.heard.append(message)

    def receive(self, *, timeout_s: float, what: str) -> Ready:  # noqa: ARG002
        return self.ready

    def take_descriptor(self) -> int:
        return os.dup(self.fd)


def damage(arena: Arena, bound: BoundState) -> None:
    (span,) = (span for span in bound.plan.spans if bound.plan.pieces[span.piece].name == "weight")
    arena.data(0)[span.arena_offset + 8] ^= 1


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (7, r"rank 0, restoring: arena of rank 0, generation 0, array 'weight': expected .* that were staged"),
        (8, r"rank 0, restoring: arena: expected a snapshot of step 8, got one of step 7"),
    ],
)
def test_memory_that_does_not_hold_what_was_saved_is_asked_for_again_and_named(step: int, told: str) -> None:
    state = State()
    state.array("weight", np.arange(1000.0), shape=(1000,))
    bound = BoundState(state, Mesh(), Rank(0))
    bound.write_records()
    fd = os.memfd_create("test-restoring")
    arena = Arena.format(fd, bound.plan)
    try:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(7))
        data = arena.data(0)
        crcs = [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in bound.plan.spans]
        arena.record_crcs(0, arena.sequence(0), crcs)
        if step == 7:
            damage(arena, bound)
        agent: Any = AgentOf(fd, Ready(step=Step(step), generation=0))
        with pytest.raises(Corrupt, match=told):
            restored(agent, bound, AS_SAVED, limit_s=1.0)
        assert [declared.must_read for declared in agent.heard] == [False, True]
    finally:
        arena.close()
        os.close(fd)
