"""The StorageReader: what `torch.distributed.checkpoint.load` calls.

Every rank opens the commit by itself and tells DCP of each array as one chunk, whatever ranks wrote it: so a plan has
one item per box that the rank wants, and metadata stays as small as the list of arrays. The coordinator makes sure that
all ranks opened the same checkpoint. Reads what BehemothWriter saved, and the arrays of any other checkpoint of ours by
their names. Neighbours: `fill` (the bytes), `contents` (all that is no array), `address` (what an id names).
"""

from __future__ import annotations

import dataclasses
import io
import os
import secrets
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.base.ids import Step
from behemoth.checkpoint.commit_log import BadCommit, commit_of, latest, record_sizes
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.dcp.address import Address, parse_address
from behemoth.dcp.addressed import Addressed
from behemoth.dcp.contents import CONTENTS_ARRAY, Contents
from behemoth.dcp.dtypes import TORCH_DTYPES
from behemoth.dcp.fill import Target, fill
from behemoth.dcp.items import box_of
from behemoth.dcp.values import from_record
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    commit: Commit
    contents: Contents


class BehemothReader(Addressed, StorageReader):
    """Loads a state dict from a checkpoint in Behemoth's format.

    `path` is a path or URL. One that ends in a step (`out/step-100`) names that checkpoint of the store `out`; any
    other names a store, of which the checkpoint of `step` is read, or, without one, the newest. A `checkpoint_id` given
    to `dcp.load` takes the place of `path`. `allow_pickle` also loads values that were kept as pickles, which may run
    any code. `threads` read at once on each rank.

    Every chunk that is needed is read whole and checked; damage raises, wrapped by DCP into a CheckpointException, with
    array, chunk and file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, step: int | None = None, allow_pickle: bool = False, threads: int = 4
    ) -> None:
        super().__init__(parse_address(path).at(step))
        self._allow_pickle = allow_pickle
        self._threads = threads
        self._load_id = secrets.token_hex(8)
        self._opened: _Opened | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another load, of `checkpoint_id` where DCP was given one."""
        self._turn_to(checkpoint_id)
        self._load_id = secrets.token_hex(8)
        self._opened = None

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """Open the checkpoint. Raises NotFound when there is none, and as `open_commit` does."""
        with closing(open_store(self._address.url)) as store:
            commit = open_commit(store, _find(store, self._address))
            contents = _read_contents(store, commit)
        self._opened = _Opened(commit=commit, contents=contents)
        meta = StorageMeta(checkpoint_id=self.checkpoint_id, load_id=self._load_id)
        return _metadata(self._opened, meta)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the checkpoint is open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Raises Invalid, by name, for values that only pickle can load, before anything is read."""
        opened = self._require_open()
        wanted = [item.dest_index.fqn for item in plan.items if item.type == LoadItemType.BYTE_IO]
        pickled = sorted(key for key in wanted if key in opened.contents.pickled)
        if pickled and not self._allow_pickle:
            raise Invalid(
                f"checkpoint of step {opened.commit.record.step}: expected typed values, got pickles: {pickled[:3]}",
                hint="leave them out of the state dict, or trust who wrote them: BehemothReader(allow_pickle=True)",
                code="dcp-pickle",
            )
        record = opened.commit.record
        return dataclasses.replace(plan, storage_data=(record.step, record.write_id))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Raises Conflict when the ranks opened different checkpoints, because one was committed meanwhile."""
        found = sorted({plan.storage_data for plan in plans})
        if len(found) > 1:
            raise Conflict(
                f"checkpoint store {self._address.url}: expected all ranks to open the same checkpoint, got {found}",
                hint="name the step, or load while nobody saves",
                code="dcp-ranks-differ",
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors and values of the plan. Blocks; the returned future is done."""
        opened = self._require_open()
        tensors: list[tuple[ReadItem, torch.Tensor]] = []
        targets: list[Target] = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._stream(opened.contents, item.storage_index.fqn))
                continue
            tensor = planner.resolve_tensor(item).detach()
            tensors.append((item, tensor))
            if tensor.numel():
                box = box_of(item.storage_offsets, item.lengths)
                targets.append(Target(opened.commit.layout.positions[item.storage_index.fqn], box, tensor))
        with closing(open_store(self._address.url)) as store:
            fill(store, opened.commit, targets, threads=self._threads)
        for item, tensor in tensors:
            planner.commit_tensor(item, tensor)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _require_open(self) -> _Opened:
        if self._opened is None:
            raise Invalid("BehemothReader: expected read_metadata first, got another call", code="dcp-not-open")
        return self._opened

    def _stream(self, contents: Contents, key: str) -> io.BytesIO:
        """A value in the form that planners load: a torch.save stream, made here for typed values."""
        if key in contents.pickled and self._allow_pickle:
            return io.BytesIO(contents.pickled[key])
        stream = io.BytesIO()
        torch.save(from_record(contents.values[key], key), stream)
        stream.seek(0)
        return stream


def _find(store: ObjectStore, address: Address) -> CommitRef:
    if address.step is None:
        newest = latest(store)
        if newest is None:
            raise NotFound(
                f"checkpoint store {address.url}: expected a checkpoint, got none",
                hint="name the folder that holds commits/, or one that ends in a step, such as out/step-100",
                code="dcp-not-found",
            )
        return newest
    found = commit_of(store, address.step)
    if isinstance(found, BadCommit):
        raise found.error
    if found is not None:
        return found
    raise NotFound(
        f"checkpoint store {address.url}: expected a checkpoint of step {address.step}, got none",
        hint=_hint(list(record_sizes(store))),
        code="dcp-not-found",
    )


def _hint(steps: Sequence[Step]) -> str:
    return f"steps that are there: {', '.join(map(str, steps[-5:]))}" if steps else "there is no checkpoint at all"


def _read_contents(store: ObjectStore, commit: Commit) -> Contents:
    if CONTENTS_ARRAY not in commit.layout.positions:
        return Contents()
    return Contents.decode(read_array(store, commit, CONTENTS_ARRAY).data)


def _metadata(opened: _Opened, meta: StorageMeta) -> Metadata:
    contents = opened.contents
    tensors = {
        spec.name: (spec.dtype, spec.shape) for spec in opened.commit.layout.arrays if spec.name != CONTENTS_ARRAY
    }
    tensors |= {key: (one.dtype, one.shape) for key, one in contents.empty.items()}
    # What this torch has no dtype for cannot be asked for, and hinders nobody who does not.
    found = {
        key: _tensor_metadata(TORCH_DTYPES[dtype], shape)
        for key, (dtype, shape) in tensors.items()
        if dtype in TORCH_DTYPES
    }
    values = {key: BytesStorageMetadata() for key in (*contents.values, *contents.pickled)}
    keys = found.keys() | values.keys()
    paths = {key: contents.paths.get(key, (key,)) for key in keys}
    return Metadata({**found, **values}, planner_data=paths, storage_meta=meta)


def _tensor_metadata(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorStorageMetadata:
    size = torch.Size(shape)
    whole = ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=size)
    return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=size, chunks=[whole])
