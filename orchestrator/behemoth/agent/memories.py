"""The arenas that the store process has mapped: for its own jobs, and for peers that ask for what lies in them.

The agent owns the memory and may replace it at any time; the mapping and the duplicated descriptor here keep memory
that is in use. Handlers only read: when a generation is filled again meanwhile, the answer says so; nothing prevents
it. Neighbours: `store_services`, which has them, and `peers.server`, which calls the handlers.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from behemoth.agent.peers.server import FileRange, Handler, Reply
from behemoth.base.errors import BehemothError, Invalid, NotFound
from behemoth.base.ids import Rank, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.plan import RankPlan
from behemoth.wire.peers import AskBytes, AskSnapshot, BytesFound, SnapshotFound

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """`fd` is this process's own descriptor of what `arena` maps."""

    inode: int
    fd: int
    arena: Arena


class Memories:
    """Thread-safe. Mapping gigabytes for each job would take longer than the job, so a mapping is kept by rank."""

    def __init__(self, *, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._lock = threading.Lock()
        self._own: dict[Rank, _Memory] = {}
        self._copies: dict[Rank, _Memory] = {}

    def mapped(self, rank: Rank, fd: int, *, new: RankPlan | None = None) -> Arena:
        """The rank's memory, mapped once for all jobs; `new`: to be formatted for this plan if it never was. The caller
        keeps `fd`.

        Memory that the agent has replaced is unmapped when the last job that uses it ends.
        """
        arena = self._map(self._own, rank, fd, new)
        for old in list(self._own)[: -self._num_ranks]:  # the node's ranks are other ones now
            self._forget(self._own, old)
        return arena

    def copy(self, rank: Rank, fd: int, plan: RankPlan) -> Arena:
        """Memory for a copy of another node's rank, formatted for its plan if it never was."""
        return self._map(self._copies, rank, fd, plan)

    def share(self, rank: Rank, fd: int, *, is_copy: bool) -> None:
        """Memory that was formatted for a store process before this one."""
        self._map(self._copies if is_copy else self._own, rank, fd, None)

    def keep_copies(self, ranks: Collection[Rank]) -> None:
        """Forget all other copies: the agent has given their memory up."""
        for rank in self._copies.keys() - set(ranks):
            self._forget(self._copies, rank)

    def handlers(self) -> Mapping[type, Handler]:
        """For a `PeerServer`."""
        return {AskSnapshot: self._snapshot, AskBytes: self._bytes}

    def _map(self, known: dict[Rank, _Memory], rank: Rank, fd: int, new: RankPlan | None) -> Arena:
        inode = os.fstat(fd).st_ino
        with self._lock:
            memory = known.get(rank)
        if memory is not None and memory.inode == inode:
            return memory.arena
        self._forget(known, rank)
        arena = Arena.open(fd) if new is None else _formatted(fd, new)
        fresh = _Memory(inode=inode, fd=os.dup(fd), arena=arena)
        with self._lock:
            other = known.get(rank)  # of a job that mapped it at the same time
            known[rank] = fresh
        if other is not None:
            os.close(other.fd)
        return arena

    def _forget(self, known: dict[Rank, _Memory], rank: Rank) -> None:
        with self._lock:
            memory = known.pop(rank, None)
        if memory is not None:
            os.close(memory.fd)

    def _snapshot(self, asked: AskSnapshot) -> Reply:
        with self._lock:
            arena, snapshot = self._find(asked.rank, asked.write_id)[1:]
        if snapshot.layout_digest != asked.layout_digest:
            raise Invalid(
                f"rank {asked.rank}, write {asked.write_id}: expected layout {asked.layout_digest[:12]}, got "
                f"{snapshot.layout_digest[:12]}",
                code="arena-layout",
            )
        crcs = arena.crcs(snapshot.generation)
        return Reply(
            answer=SnapshotFound(sequence=snapshot.sequence, step=snapshot.step, data_bytes=arena.data_bytes),
            payload=(crcs.tobytes(),),
            is_whole=partial(_is_held, arena, snapshot.generation, snapshot.sequence),
        )

    def _bytes(self, asked: AskBytes) -> Reply:
        with self._lock:  # so that the descriptor is not closed before there is another
            memory, arena, snapshot = self._find(asked.rank, asked.write_id, sequence=asked.sequence)
            end = asked.offset_bytes + asked.length_bytes
            if end > arena.data_bytes:
                raise Invalid(
                    f"rank {asked.rank}: expected a range within {arena.data_bytes} bytes, got one up to {end}",
                    code="peer-range",
                )
            fd = os.dup(memory.fd)
        offset_bytes = arena.data_offset_bytes(snapshot.generation) + asked.offset_bytes
        return Reply(
            answer=BytesFound(),
            payload=FileRange(fd=fd, offset_bytes=offset_bytes, length_bytes=asked.length_bytes),
            is_whole=partial(_is_held, arena, snapshot.generation, snapshot.sequence),
        )

    def _find(self, rank: Rank, write_id: WriteId, *, sequence: int | None = None) -> tuple[_Memory, Arena, Snapshot]:
        for memory in (self._own.get(rank), self._copies.get(rank)):
            for snapshot in memory.arena.held() if memory is not None else ():
                if memory is not None and snapshot.write_id == write_id and sequence in (None, snapshot.sequence):
                    return memory, memory.arena, snapshot
        raise NotFound(f"memory of rank {rank}: expected a snapshot of write {write_id}, got none", code="arena-empty")


def _is_held(arena: Arena, generation: int, sequence: int) -> bool:
    try:
        return arena.sealed(generation, sequence) is not None
    except BehemothError:
        return False


def _formatted(fd: int, plan: RankPlan) -> Arena:
    """Format new memory, once: afterwards its size is fixed, since a worker that shrank it would end us by SIGBUS."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS:
        return Arena.open(fd)
    try:
        arena = Arena.format(fd, plan)
    except BehemothError:
        os.ftruncate(fd, 0)  # what was faulted in before memory ran short
        raise
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return arena
