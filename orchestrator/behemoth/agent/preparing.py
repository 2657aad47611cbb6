"""Prepares a rank's staging memory with the checkpoint to restore, each part from the nearest place that has it.

In this order: the rank's own memory, a peer's memory, the node's own disk, files of this machine, the store. What a
nearer place cannot give comes from the next one; what it gave is kept. Runs in the store process; the neighbours are
`storeserver`, which takes the orders, and `places`.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from behemoth.agent.budget import require_budget
from behemoth.agent.memories import Memories
from behemoth.agent.node_reads import NodeReads, NodeRestore
from behemoth.agent.opened_once import OpenedAs, OpenedOnce
from behemoth.agent.own_disk import OwnDisk, disk_trouble
from behemoth.agent.peers.places import AskPeer, PeerPlaces
from behemoth.agent.peers.shared_reads import SharedReads
from behemoth.agent.places import SnapshotPlace, take_from
from behemoth.agent.storewire import Prepare, Prepared, RestoreSource
from behemoth.base.errors import Corrupt, Invalid, NotFound
from behemoth.base.ids import Rank
from behemoth.base.slots import ranks_of, slot_of
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.common_chunks import read_by_several
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.gathering import Gathering, HeldSnapshot
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin, has_own_arrays, left_out, origins
from behemoth.checkpoint.opened import Commit, open_told
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.reader import read_rank, read_spans
from behemoth.checkpoint.reading_threads import NUM_PROBES, are_cached, reading_threads
from behemoth.checkpoint.scale_waves import kept_share
from behemoth.checkpoint.units import ChunkUnits
from behemoth.ports import KeepsFiles, ObjectStore
from behemoth.state.effect import CommitRef

FILES_BYTES = 64 << 20
"""Smaller parts of a rank go through its staging memory instead of being read from files by the rank: the copy costs
milliseconds, and the next restart finds them in memory."""
NODE_BYTES = 512 << 20
"""Most bytes that a node keeps of what one rank has read for its others: some tenths of a second of reading ahead."""

_log = logging.getLogger(__name__)


class Preparing:
    """Thread-safe. `shared()` is the store as nodes read it together, None where each reads for itself. `run_name`
    tells the run's own checkpoints from those that it begins from. `disk`: None where the run has no use for the
    node's own."""

    def __init__(
        self,
        memories: Memories,
        *,
        store: Callable[[], ObjectStore],
        peer: AskPeer,
        shared: Callable[[], SharedReads | None],
        threads: int,
        ranks_per_node: int,
        run_name: str,
        disk: OwnDisk | None = None,
    ) -> None:
        self._memories = memories
        self._store = store
        self._peer = peer
        self._shared = shared
        self._threads = threads
        self._ranks_per_node = ranks_per_node
        self._run_name = run_name
        self._disk = disk
        # A worker that died while its memory was being prepared has a successor that asks for the same: one at a time.
        self._lock = threading.Lock()
        self._busy: defaultdict[Rank, threading.Lock] = defaultdict(threading.Lock)
        self._opened = OpenedOnce()
        self._restore = NodeRestore()
        self._asking = threading.Lock()
        self._reading: tuple[Commit, int] | None = None

    def prepare(self, order: Prepare, fd: int) -> Prepared:
        """Raises Behemoth's errors when no place has the checkpoint."""
        with self._lock:
            busy = self._busy[order.rank]
        with busy:
            return self._prepare_alone(order, fd)

    def clear(self) -> None:
        """Free what was opened for a restore: no rank restores any more."""
        self._opened.clear()
        self._restore.clear()
        with self._asking:
            self._reading = None

    def _prepare_alone(self, order: Prepare, fd: int) -> Prepared:
        layout = Layout.decode(order.layout)
        if order.budget is not None:
            require_budget(layout, order.budget)
        if self._disk is not None:
            self._disk.require_budget(layout, order.rank)
        plan = plan_rank(layout, order.rank)
        arena = self._memories.mapped(order.rank, fd, new=plan if order.is_new else None)
        source = order.source
        if source is None:
            return Prepared(job=order.job, generation=None, origin="nothing")
        if source.held_in is not None and not source.must_read and _holds(arena, source, source.held_in):
            return Prepared(job=order.job, generation=source.held_in, origin="memory")
        gathering = Gathering(
            plan, arena, source.spare, write_id=source.write_id, step=source.step, threads=self._threads
        )
        wanted = _Wanted(order, source, layout, plan, arena, gathering)
        taken = take_from(self._places(wanted), gathering)
        if gathering.is_whole:
            gathering.seal()
            prepared = Prepared(job=order.job, generation=source.spare, origin=taken.origin)
        else:
            prepared = replace(self._from_store(wanted), missed="; ".join(taken.missed))
        return replace(
            prepared,
            peer_bytes=prepared.peer_bytes + taken.received_bytes["peer"],
            disk_bytes=taken.received_bytes["disk"],
            disk_trouble=disk_trouble(taken.errors.get("disk")),
        )

    def _places(self, wanted: _Wanted) -> Iterator[SnapshotPlace]:
        """The places before the store, nearest first; each is made only when it is asked."""
        held_in, arena = wanted.source.held_in, wanted.arena
        if held_in is not None and held_in != wanted.source.spare and _holds(arena, wanted.source, held_in):
            # some of it is damaged: the rest is proven here too
            yield SnapshotPlace("memory", partial(HeldSnapshot, arena, held_in))
        yield from PeerPlaces(
            self._peer,
            wanted.gathering,
            wanted.layout,
            wanted.plan,
            wanted.source,
            ranks_per_node=self._ranks_per_node,
        )
        if self._disk is not None:
            yield self._disk.place(wanted.plan, wanted.source)

    def _from_store(self, wanted: _Wanted) -> Prepared:
        """Read what is still missing from the store, or everything where that is simpler."""
        order, source = wanted.order, wanted.source
        shared, in_vain = self._shared(), 0
        if shared is not None:
            try:
                commit = self._open(shared, source, is_shared=True)
                shared.unit_of = ChunkUnits(commit).unit_of
                return self._read(wanted, shared, commit, self._intake(order, commit, wanted.layout))
            except (Corrupt, Invalid):  # as seen through peers: who judges a checkpoint has read it alone
                _log.warning("rank %d, write %s: read again, alone", order.rank, source.write_id)
                in_vain = shared.read_bytes
        store = self._store()
        alone = CountingStore(store)
        commit = self._open(alone, source, is_shared=False)
        intake, files = self._intake(order, commit, wanted.layout), None
        if intake == AS_SAVED and not source.must_read and shared is None and not wanted.gathering.has_any:
            files = files_of(store, commit, wanted.layout, wanted.plan)
        if files is not None:
            return Prepared(
                job=order.job,
                generation=None,
                origin="files",
                folder=files.folder,
                is_cold=files.are_cold,
                store_bytes=alone.read_bytes + _chunk_bytes(wanted.layout, wanted.plan),
            )
        prepared = self._read(wanted, alone, commit, intake)
        return replace(prepared, store_bytes=prepared.store_bytes + in_vain)

    def _open(self, store: ObjectStore, source: RestoreSource, *, is_shared: bool) -> Commit:
        key = OpenedAs(source.step, source.write_id, is_shared)
        ref = CommitRef(step=source.step, write_id=source.write_id, size_bytes=0)
        return self._opened.get(key, lambda: open_told(store, ref, record_bytes=source.record_bytes))

    def _read(self, wanted: _Wanted, store: CountingStore | SharedReads, commit: Commit, intake: Intake) -> Prepared:
        gathering, layout, source = wanted.gathering, wanted.layout, wanted.source
        threads = self._threads_for(commit)
        nothing: tuple[int, ...] = ()
        # Memory may hold the write as it became on this mesh; then only the whole is read as the commit has it.
        is_rest = gathering.has_any and intake == AS_SAVED and commit.layout.digest == layout.digest
        if is_rest:
            gathering.complete(partial(read_spans, store, commit, threads=threads))
        else:
            found = origins(commit.layout, layout, step=source.step, intake=intake)
            with self._as_node(wanted, store, commit, intake, found) as reads:
                plan, arena = wanted.plan, wanted.arena
                read_rank(
                    reads,
                    commit,
                    layout,
                    plan,
                    arena,
                    source.spare,
                    threads=threads,
                    intake=intake,
                    kept_bytes=kept_share(self._ranks_per_node),
                )
            nothing = left_out(layout, found)
        if nothing:  # it is not that checkpoint, which a peer might take it for
            wanted.arena.disprove(source.spare)
        return Prepared(
            job=wanted.order.job,
            generation=source.spare,
            origin="several" if is_rest else "store",
            left_out=nothing,
            peer_bytes=store.peer_bytes if isinstance(store, SharedReads) else 0,
            store_bytes=store.read_bytes,
        )

    def _threads_for(self, commit: Commit) -> int:
        """Asked of the kernel once for all ranks of a restore: it is some dozen files to open."""
        with self._asking:
            if self._reading is None or self._reading[0] is not commit:
                self._reading = commit, reading_threads(self._store(), commit, threads=self._threads)
            return self._reading[1]

    @contextmanager
    def _as_node(
        self,
        wanted: _Wanted,
        store: CountingStore | SharedReads,
        commit: Commit,
        intake: Intake,
        found: Sequence[Origin],
    ) -> Iterator[ObjectStore]:
        """The store as this rank reads it together with others of its node, which have chunks in common: on another
        layout. On the same one they hardly do, and a node's own files are faster read straight into place; what comes
        from servers or other nodes is asked for once."""
        layout, rank = wanted.layout, wanted.plan.rank
        is_alike = intake == AS_SAVED and commit.layout.digest == layout.digest
        is_own = isinstance(self._store(), KeepsFiles) and not isinstance(store, SharedReads)
        if self._ranks_per_node == 1 or (is_alike and is_own):
            yield store
            return

        slot = slot_of(rank, self._ranks_per_node)

        def begun() -> NodeReads:
            ranks = [one for one in ranks_of(slot, self._ranks_per_node) if one < layout.mesh.num_ranks]
            common = read_by_several(commit, layout, found, ranks)
            return NodeReads(common, unit_of=ChunkUnits(commit).unit_of, limit_bytes=NODE_BYTES)

        # A node may restore the same for another slot, whose ranks are others, before anything is saved.
        key = (slot, commit.record.step, commit.record.write_id, layout.digest, intake.encode())
        with self._restore.joined(key, rank, begun).of(rank, store) as reads:
            yield reads

    def _intake(self, order: Prepare, commit: Commit, layout: Layout) -> Intake:
        """What the program says of a checkpoint that it begins from. It says the same at every start, also when the
        run goes on from a checkpoint that it has saved itself: that one comes back whole."""
        intake = Intake.decode(order.intake) if order.intake else AS_SAVED
        is_own = commit.record.run == self._run_name and has_own_arrays(commit.layout, layout)
        if is_own and intake != AS_SAVED:
            _log.info(
                "rank %d, write %s: the run's own, so nothing is converted or left out",
                order.rank,
                commit.record.write_id,
            )
        return AS_SAVED if is_own else intake


class _Wanted(NamedTuple):
    """One restore of one rank. `source` is that of `order`; `gathering` fills its spare generation of `arena`."""

    order: Prepare
    source: RestoreSource
    layout: Layout
    plan: RankPlan
    arena: Arena
    gathering: Gathering


class RankFiles(NamedTuple):
    """Where a rank finds its part itself, and whether the page cache holds little of that."""

    folder: str
    are_cold: bool


def files_of(store: ObjectStore, commit: Commit, layout: Layout, plan: RankPlan) -> RankFiles | None:
    """None when the rank's part is small, in no files, or of another layout: only a file of the rank's own layout has
    its spans in it."""
    if commit.layout.digest != layout.digest:
        return None
    if plan.data_bytes < FILES_BYTES or not isinstance(store, KeepsFiles):
        return None
    ranges = []
    for span in plan.spans[:: -(-len(plan.spans) // NUM_PROBES)]:
        grid = grids(layout)[span.array]
        key = commit.shard_key(span.array, span.shard)
        ranges.append((key, grid.chunk_offset_bytes(span.chunk), grid.stride_bytes))
    try:
        return RankFiles(store.folder(commit.record.prefix), not are_cached(store, ranges))
    except NotFound:
        return None  # who reads it through the store says what is missing


def _chunk_bytes(layout: Layout, plan: RankPlan) -> int:
    """What a rank reads that reads for itself: whole chunks with their CRCs, one for each span."""
    return sum(grids(layout)[span.array].stored_bytes for span in plan.spans)


def _holds(arena: Arena, source: RestoreSource, generation: int) -> bool:
    """True when memory holds exactly the wanted snapshot, with its CRCs, which the worker checks as it copies."""
    try:
        snapshot = arena.snapshot(generation)
    except NotFound:
        return False
    return snapshot.is_verified and (snapshot.write_id, snapshot.step) == (source.write_id, source.step)
