"""A node's own disk: what its ranks have committed is copied there, and comes back when the node's memory is lost.

Copies are made in the background, at a bounded rate, and not while a save is written. They reserve nothing that a save
needs: when the next save needs the memory, the copy is abandoned. Runs in the store process; the neighbours are
`keeping`, the agent's end, and `checkpoint.snapshot_files`, which does the work.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial

from behemoth.agent.budget import require_disk_budget
from behemoth.agent.memories import Memories
from behemoth.agent.pace import Pace, bucket_of
from behemoth.agent.places import SnapshotPlace
from behemoth.agent.storewire import DiskService, KeepOnDisk, KeptOnDisk, RestoreSource
from behemoth.base.errors import BehemothError, Invalid, NotFound, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.base.slots import ranks_of, slot_of
from behemoth.base.units import format_size
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.snapshot_files import UNREADABLE, SnapshotFiles, SnapshotInFile, gives_nothing, keys_of
from behemoth.ports import WritesRanges

_log = logging.getLogger(__name__)


class OwnDisk:
    """`store` is the disk's folder for all runs and nodes. One thread keeps and clears, any may ask for snapshots."""

    def __init__(
        self,
        service: DiskService,
        store: WritesRanges,
        memories: Memories,
        *,
        num_ranks: int,
        is_writing: Callable[[], bool],
    ) -> None:
        self._service = service
        self._store = store
        self._memories = memories
        self._num_ranks = num_ranks
        self._is_writing = is_writing
        self._bucket = bucket_of(service.disk.rate_bytes_per_s)
        self._distrusted: set[tuple[Rank, WriteId]] = set()  # could not be dropped so far

    def keep(self, order: KeepOnDisk, fd: int, *, cancelled: Callable[[], bool]) -> KeptOnDisk:
        """Raises Behemoth's errors when memory does not have the write any more or the disk takes no more, and Conflict
        when cancelled."""
        plan = plan_rank(Layout.decode(order.layout), order.rank)
        files = self._files(plan)
        distrusted = (order.rank, order.write_id)
        if files.holds(order.write_id, order.step) and distrusted not in self._distrusted:
            return KeptOnDisk(job=order.job, num_bytes=0)
        arena = self._memories.mapped(order.rank, fd)
        snapshot = _committed(arena, plan, order.write_id, order.step)
        self._drop_others(order.rank)
        self._require_room(files, order.rank)
        pace = Pace(
            f"rank {order.rank} to the own disk", self._bucket, is_writing=self._is_writing, cancelled=cancelled
        )
        files.write(arena, snapshot, pace=pace)
        self._distrusted.discard(distrusted)
        return KeptOnDisk(job=order.job, num_bytes=plan.data_bytes)

    def snapshot(self, plan: RankPlan, write_id: WriteId, step: Step) -> SnapshotInFile:
        """Raises NotFound, which says what is there instead."""
        return self._files(plan).find(write_id, step)

    def place(self, plan: RankPlan, source: RestoreSource) -> SnapshotPlace:
        """Where a restore may find this checkpoint."""
        return SnapshotPlace(
            "disk",
            partial(self.snapshot, plan, source.write_id, source.step),
            failed=partial(self.distrust, plan, source.write_id),
        )

    def distrust(self, plan: RankPlan, write_id: WriteId, error: BehemothError) -> None:
        """A restore found the copy damaged: drop it, so that it is written again. Never raises."""
        if isinstance(error, NotFound) or not gives_nothing(error):  # what was not there may have come meanwhile
            return
        self._distrusted.add((plan.rank, write_id))
        try:
            self._files(plan).drop(write_id)
            self._distrusted.discard((plan.rank, write_id))
        except BehemothError as failure:
            _log.warning("own disk: rank %d, write %s stays, though damaged: %s", plan.rank, write_id, failure)

    def require_budget(self, layout: Layout, rank: Rank) -> None:
        """Raises Invalid when the node of `rank` would take more of the disk than it may."""
        if self._service.disk.budget_bytes is not None:
            require_disk_budget(layout, self._ranks(rank), self._service.disk.budget_bytes)

    def clear(self) -> None:
        """Remove all of this node's files of this run, and no other's."""
        self._store.delete([one.key for one in self._store.list(self._service.folder)])

    def _files(self, plan: RankPlan) -> SnapshotFiles:
        return SnapshotFiles(self._store, self._service.folder, plan, run_uid=self._service.run_uid)

    def _ranks(self, rank: Rank) -> list[Rank]:
        """Those of the node that has this one."""
        return ranks_of(slot_of(rank, self._num_ranks), self._num_ranks)

    def _drop_others(self, rank: Rank) -> None:
        """Delete files of ranks that are on another node now."""
        own = {key for one in self._ranks(rank) for key in keys_of(self._service.folder, one)}
        others = [one.key for one in self._store.list(self._service.folder) if one.key not in own]
        if others:
            self._store.delete(others)

    def _require_room(self, files: SnapshotFiles, rank: Rank) -> None:
        """Before a new file is begun: a disk that is filled to its last byte is of no use to others either."""
        new_bytes = files.new_bytes()
        free_bytes = _free_bytes(self._service.disk.path)
        if new_bytes > free_bytes:
            raise Unavailable(
                f"own disk {self._service.disk.path}: expected {format_size(new_bytes)} free for rank {rank}, got "
                f"{format_size(free_bytes)}",
                hint="free space there, or leave spec.checkpoint.local_disk out; saves and training go on without it",
                code="no-space",
            )


def disk_trouble(error: BehemothError | None) -> str:
    """The trouble of the disk that an error of a restore shows; empty where it only never had the write."""
    if error is None or (isinstance(error, NotFound) and error.code != UNREADABLE):
        return ""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _committed(arena: Arena, plan: RankPlan, write_id: WriteId, step: Step) -> Snapshot:
    if arena.layout_digest != plan.layout_digest:
        raise Invalid(
            f"memory of rank {plan.rank}: expected layout {plan.layout_digest[:12]}, got {arena.layout_digest[:12]}",
            code="arena-layout",
        )
    for snapshot in arena.held():
        if snapshot.is_verified and (snapshot.write_id, snapshot.step) == (write_id, step):
            return snapshot
    raise NotFound(f"memory of rank {plan.rank}: expected a snapshot of write {write_id}, got none", code="arena-empty")


def _free_bytes(path: str) -> int:
    """On the disk of a folder that may have to be made."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        return shutil.disk_usage(path).free
    except OSError as error:
        raise Unavailable(f"own disk {path}: expected to learn its free space, got {error.strerror}") from error
