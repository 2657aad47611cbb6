"""The StorageWriter: what `torch.distributed.checkpoint.save` and `async_save` call.

DCP gathers the plans of all ranks on one, its coordinator, which there decides the step, the write id and the arrays;
each rank then writes its boxes without talking, and the coordinator proves from all results that every byte is there
once, and commits. Until that commit nothing exists that could be loaded, and what was there before stays. Neighbours:
`rank_writer` (a rank's bytes), `publish` (the commit), `address` (what an id names).
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.discarding import discard_write
from behemoth.dcp.address import Address, parse_address
from behemoth.dcp.addressed import Addressed
from behemoth.dcp.bucket_borders import begin_shared
from behemoth.dcp.folders import settle
from behemoth.dcp.orders import Orders
from behemoth.dcp.publish import check_place, publish
from behemoth.dcp.rank_writer import RankWriter
from behemoth.dcp.same_store import mark, require_same, unmark
from behemoth.dcp.save_call import SaveCall
from behemoth.dcp.save_lock import SaveLock
from behemoth.dcp.save_plan import SavedState, orders_of, rank_boxes, rank_orders, saved_state
from behemoth.dcp.whole_plans import whole_plans
from behemoth.ports import ObjectStore, UploadsParts
from behemoth.storage.local import LocalStore
from behemoth.storage.open import is_s3, open_bucket, open_files
from behemoth.storage.probe_uploads import probe_uploads

if TYPE_CHECKING:
    from behemoth.storage.s3 import S3Store


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Save:
    """A save under way, as its coordinator knows it."""

    address: Address
    meta: StorageMeta
    state: SavedState
    call: SaveCall
    replaces: bool
    """Whether it may replace a checkpoint of the same step: only where the caller gave the step."""


class _Told(NamedTuple):
    """The address and metadata of a save, kept per thread that saves."""

    address: Address
    meta: StorageMeta


class BehemothWriter(Addressed, StorageWriter):
    """Saves a state dict as a checkpoint in Behemoth's format.

    `path` is a path, or a URL of files or of a bucket. One that ends in a step (`out/step-100`) names that checkpoint
    of the store `out`; any other names a store, in which the checkpoint is that of `step`, or, without one, the next
    after its newest. A `checkpoint_id` given to `dcp.save` takes the place of `path`. An id like `out/step-100` is also
    a folder then, with a file `.metadata` for programs that look for one; a checkpoint whose folder they remove goes
    with a later save, but never one of the newest two, or one that is pinned. A checkpoint that is there already is
    replaced once the new one is proven whole, unless `overwrite` is off. `allow_pickle` keeps values that only pickle
    can hold, which run code when they are loaded; without it they are refused by name. `threads` write at once on each
    rank.

    One save at a time: wait for the future of an async_save before the next. Raises, wrapped by DCP into a
    CheckpointException, what is wrong with rank, array and reason; no checkpoint is there then, but where its folder
    alone could not be put up, which the next save does, or what it replaced could not be removed, which a clean-up
    does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        overwrite: bool = True,
        allow_pickle: bool = False,
        threads: int = 4,
    ) -> None:
        super().__init__(parse_address(path).at(step))
        self._overwrite = overwrite
        self._allow_pickle = allow_pickle
        self._threads = threads
        self._save_id = secrets.token_hex(8)
        self._save: _Save | None = None
        self._told: dict[int, _Told] = {}
        self._lock = SaveLock()
        self._plans: list[SavePlan] = []
        self._probed: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has no save under way."""
        return {**self.__dict__, "_save": None, "_told": {}, "_plans": []}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another save, of `checkpoint_id` where DCP was given one."""
        self._turn_to(checkpoint_id)
        self._save_id = secrets.token_hex(8)
        # A second save, of another id, may turn the writer before this one is set up: the planner's turn comes first.
        self._told[threading.get_ident()] = self._now()

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raises Invalid without collectives: then nobody can prove that the ranks wrote one checkpoint."""
        if not kwargs.get("use_collectives", True):
            raise Invalid(
                "BehemothWriter: expected DCP to use collectives, got use_collectives=False",
                hint="leave it out: a checkpoint is committed by one rank for all",
                code="dcp-collectives",
            )
        self._told.setdefault(threading.get_ident(), self._now())

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: what every rank is to write, and where."""
        (address, meta), call = self._told.get(threading.get_ident(), self._now()), SaveCall.here()
        self._require_one_save(call)
        plans = self._plans = whole_plans(plans, self._plans)
        with self._held_unless_it_fails(), closing(_opened(address.url)) as store:
            self._drop_failed(store, address.url)
            if not isinstance(store, UploadsParts):
                self._lock.take(Path(store.root), call)
            elif address.url not in self._probed:
                probe_uploads(store, url=address.url)
                self._probed.add(address.url)
            step = check_place(store, address, overwrite=self._overwrite)
            state = _planned(store, plans, step)
        self._save = _Save(
            address=address,
            meta=meta,
            state=state,
            call=call,
            replaces=self._overwrite and address.step is not None,
        )
        return [
            dataclasses.replace(plan, storage_data=rank_orders(state, Rank(rank), plan.items))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and seal this rank's items. Blocks until they are durable; the future is done."""
        orders = plan.storage_data
        if not isinstance(orders, Orders):
            raise Invalid(
                f"BehemothWriter: expected a plan that its coordinator made, got one of {type(orders).__name__}",
                hint="give every rank a BehemothWriter",
                code="dcp-orders",
            )
        address, _ = self._told.pop(threading.get_ident(), self._now())
        with self._held_unless_it_fails(), closing(_opened(address.url)) as store:
            require_same(store, address, orders)
            rank = RankWriter(store, orders, planner, allow_pickle=self._allow_pickle, threads=self._threads)
            results = rank.write(plan.items)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: prove and commit. Durable on return."""
        save = self._save
        if save is None:
            raise Conflict("BehemothWriter: expected a save that was planned here, got none", code="dcp-orders")
        metadata.storage_meta = save.meta
        with self._held_unless_it_fails(), closing(_opened(save.address.url)) as store:
            unmark(store, save.state.prefix)
            publish(
                store,
                save.state,
                metadata,
                [[result.storage_data for result in rank] for rank in results],
                folder=save.address.folder,
                replaces=save.replaces,
                threads=self._threads,
            )
            settle(store)
        self._save = None
        self._lock.let_go()

    def _now(self) -> _Told:
        return _Told(self._address, self.storage_meta())

    @contextmanager
    def _held_unless_it_fails(self) -> Iterator[None]:
        """Release the lock when the block fails. A failure on another rank is found by `SaveLock` itself."""
        try:
            yield
        except BaseException:
            self._lock.let_go()
            raise

    def _require_one_save(self, save: SaveCall) -> None:
        """Raises Conflict while the former save may be going on; its lock stays."""
        former = self._save
        if former is not None and former.call.thread != save.thread and not former.call.is_over():
            raise Conflict(
                "BehemothWriter: expected one save at a time, got a second while the first goes on",
                hint="wait for the future of async_save before the next save",
                code="dcp-two-saves",
            )

    def _drop_failed(self, store: ObjectStore, url: str) -> None:
        """Delete what a failed save of this writer left."""
        failed = self._save
        if failed is not None:
            if failed.address.url == url:
                discard_write(store, failed.state.step, failed.state.write_id)
            self._save = None
        self._lock.let_go()


def _planned(store: LocalStore | S3Store, plans: Sequence[SavePlan], step: Step) -> SavedState:
    """A write of its own, with its mark; in a bucket, the uploads that several ranks share are begun."""
    items = [plan.items for plan in plans]
    write_id = WriteId(f"dcp-{secrets.token_hex(4)}")
    is_bucket = isinstance(store, UploadsParts)
    state = saved_state(items, step=step, write_id=write_id, sharding="box" if is_bucket else "array")
    mark(store, state.prefix)
    if not isinstance(store, UploadsParts):
        return state
    placed = orders_of(state, Rank(0), state.arrays.values()).placed()
    return dataclasses.replace(state, begun=begin_shared(store, placed, [rank_boxes(one) for one in items]))


def _opened(url: str) -> LocalStore | S3Store:
    """Open the store so that saved files stay in the page cache: a DCP program has no agent that keeps them in memory
    for a restart."""
    return open_bucket(url) if is_s3(url) else open_files(url, direct_writes=False)
