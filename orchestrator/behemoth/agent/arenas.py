"""The memory that holds staged checkpoints: one anonymous file per local rank, two generations in each.

The agent only tracks which generation holds what; the bytes are written and read by the worker and the store process,
which get the descriptor (`behemoth.checkpoint.arena`). The rule that keeps a run alive is here: the generation with the
newest committed checkpoint is never given out for writing, nor one that is being written to the store; when none is
left the save waits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from behemoth.agent.storewire import RestoreSource
from behemoth.base.errors import Unavailable
from behemoth.base.ids import Rank, WriteId
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.session import Declare

NUM_GENERATIONS = 2


@dataclass(slots=True)
class Generation:
    """What the agent knows of one generation. `granted`: a worker may be copying; `staged`: sealed, and wanted until
    its commit or its abort; `committed`: the newest checkpoint that can be restored from memory. One that is free with
    a write id holds that older checkpoint until it is given out again."""

    state: Literal["free", "granted", "staged", "committed"] = "free"
    write_id: WriteId | None = None
    is_read: bool = False
    """The store process is writing it out: whatever becomes of the write, it is not given out before that has ended. A
    process that hangs in it is ended (`storelink`), so that even then it comes back."""

    def free(self) -> None:
        self.state, self.write_id = "free", None


@dataclass(slots=True, eq=False)
class RankMemory:
    """One rank's staging memory; owns the descriptor."""

    rank: Rank
    declared: Declare
    fd: int
    is_new: bool = True
    generations: tuple[Generation, ...] = field(
        default_factory=lambda: tuple(Generation() for _ in range(NUM_GENERATIONS))
    )

    def fits(self, rank: Rank, declared: Declare) -> bool:
        return (self.rank, self.declared.digest, self.declared.arena_bytes) == (
            rank,
            declared.digest,
            declared.arena_bytes,
        )

    def grant(self, write_id: WriteId) -> int | None:
        """The generation that the worker may fill for this write; None: it must wait."""
        for index, generation in enumerate(self.generations):
            if generation.state == "granted" and generation.write_id == write_id:
                return index
        for index, generation in enumerate(self.generations):
            if generation.state == "free":
                generation.state, generation.write_id = "granted", write_id
                return index
        return None

    def staged(self, write_id: WriteId) -> None:
        for generation in self.generations:
            if generation.state == "granted" and generation.write_id == write_id:
                generation.state = "staged"

    def committed(self, write_id: WriteId) -> None:
        """An older committed generation becomes free; a write that is not here changes nothing."""
        newest = next((one for one in self.generations if one.state == "staged" and one.write_id == write_id), None)
        if newest is None:
            return
        for generation in self.generations:
            if generation.state == "committed":
                generation.state = "free"
        newest.state = "committed"

    def has_committed(self, write_id: WriteId) -> bool:
        """Whether this write is the one to restore from memory."""
        return any(one.state == "committed" and one.write_id == write_id for one in self.generations)

    def reading(self, write_id: WriteId, *, is_read: bool) -> None:
        """The store process begins or ends to read this write's generation."""
        for generation in self.generations:
            if generation.write_id == write_id:
                generation.is_read = is_read

    def drop(self, write_id: WriteId) -> None:
        """The write is given up. Its generation stays as it is while the store process still reads it."""
        for generation in self.generations:
            if generation.write_id == write_id and generation.state != "committed" and not generation.is_read:
                generation.free()

    def drop_granted(self) -> None:
        """The workers are gone: free the generations that they were copying into."""
        for generation in self.generations:
            if generation.state == "granted" and not generation.is_read:
                generation.free()

    def source(self, restore: RestoreFrom) -> RestoreSource:
        """Where this rank's part of a committed checkpoint may be, and which generation may take it from the store. It
        may be the one before the newest: that one may have been committed while this restore was decided."""
        held = None
        for index, generation in enumerate(self.generations):
            if generation.write_id == restore.write_id and generation.state in ("staged", "committed", "free"):
                held = index
        return RestoreSource(step=restore.step, write_id=restore.write_id, held_in=held, spare=self._spare())

    def restored(self, generation: int, write_id: WriteId | None) -> None:
        """`generation` now holds this committed checkpoint, or just a part of one (None), which no later restore may
        take for it; any other committed one is not wanted any more."""
        for one in self.generations:
            if one.state == "committed":
                one.free()
        self.generations[generation].state = "committed"
        self.generations[generation].write_id = write_id

    def _spare(self) -> int:
        """A free generation, else the committed one: the coordinator wants another checkpoint back, so that one is not
        good. One that is being written out is taken only when there is no other; whoever reads it finds that its
        sequence has changed."""
        states = ["read" if generation.is_read else generation.state for generation in self.generations]
        order = ("free", "committed", "granted", "staged", "read")
        return min(range(len(states)), key=lambda index: order.index(states[index]))

    def close(self) -> None:
        os.close(self.fd)


class Arenas:
    """The memories of this node's ranks, kept across attempts as long as rank and layout stay the same."""

    def __init__(self) -> None:
        self._memories: dict[int, RankMemory] = {}

    def declare(self, local_rank: int, rank: Rank, declared: Declare) -> RankMemory:
        """The memory for this rank, an old one if it fits. Raises Unavailable when there is no memory for it."""
        memory = self._memories.get(local_rank)
        if memory is not None and memory.fits(rank, declared):
            memory.declared = declared  # what is frozen may have changed, without any effect on the memory
            return memory
        if memory is not None:
            del self._memories[local_rank]
            memory.close()
        memory = RankMemory(rank=rank, declared=declared, fd=_anonymous_file(rank, declared.arena_bytes))
        self._memories[local_rank] = memory
        return memory

    def of(self, local_rank: int) -> RankMemory | None:
        return self._memories.get(local_rank)

    def all(self) -> tuple[RankMemory, ...]:
        return tuple(self._memories.values())

    def committed(self, write_id: WriteId) -> None:
        for memory in self._memories.values():
            memory.committed(write_id)

    def drop_granted(self) -> None:
        for memory in self._memories.values():
            memory.drop_granted()

    def close(self) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()


def _anonymous_file(rank: Rank, size_bytes: int) -> int:
    fd = os.memfd_create(f"behemoth-rank-{rank}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        os.close(fd)
        raise Unavailable(
            f"staging memory of rank {rank}: expected {size_bytes} bytes, got {error.strerror}",
            hint="the node needs memory for two copies of what its ranks save",
            code="no-memory",
        ) from error
    return fd
