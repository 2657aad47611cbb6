"""Ends a DCP save on its coordinator: from what all ranks say that they wrote to one commit.

The proof is that of every checkpoint (`checkpoint.proof`). Nothing that stood before is touched until it holds.
Neighbours: `writer`, which calls this; `checkpoint.commit`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import torch
from torch.distributed.checkpoint.metadata import Metadata

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Attempt, Rank, Step
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import complete
from behemoth.checkpoint.commit_log import COMMIT_TAKEN, BadCommit, commit_of, record_sizes
from behemoth.checkpoint.commit_log import publish as publish_record
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.discarding import delete_below
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.owner import read_owner
from behemoth.checkpoint.paths import DELETING, MAX_STEP, marker_key, step_prefix
from behemoth.checkpoint.pins import pinned_writes
from behemoth.checkpoint.receipt import Receipt, WrittenShard
from behemoth.checkpoint.replacing import replace_commit
from behemoth.checkpoint.signposts import forget, make_due, require_free, signposts, take_down
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.dcp.address import Address
from behemoth.dcp.box_writer import PlacedBox, write_boxes
from behemoth.dcp.bucket_borders import complete_shared
from behemoth.dcp.bucket_writer import upload_boxes
from behemoth.dcp.contents import CONTENTS_ARRAY, Contents, paths_of
from behemoth.dcp.orders import KeptPickle, KeptValue, SentObjects, Told, WrittenBox
from behemoth.dcp.save_plan import SavedState, orders_of
from behemoth.dcp.tensors import Tensors
from behemoth.ports import ObjectStore, SavesTo, UploadsParts
from behemoth.state.effect import CommitRef

RUN = "torch.distributed.checkpoint"
"""The run name in commits by DCP."""
_ATTEMPT = Attempt(1)
_COORDINATOR = Rank(0)
"""The rank under which the coordinator writes. Ranks here are positions in the list of plans, whichever rank of the
process group coordinates."""


def check_place(store: ObjectStore, address: Address, *, overwrite: bool) -> Step:
    """The step of a new checkpoint at this address. Reads. Raises Conflict for a store of a run, which would not know
    what it finds, for a checkpoint that is there and must stay, and for one of torch's own in its folder."""
    owner = read_owner(store)
    if address.folder is not None:
        require_free(store, address.folder)
    if owner is not None:
        raise Conflict(
            f"checkpoint store {address.url}: expected one that belongs to no run, got that of run/{owner.name} in "
            f"{owner.directory}",
            hint="save into a folder of its own",
            code="dcp-owned",
        )
    if address.step is None:
        step = max(record_sizes(store), default=Step(-1)) + 1
        if step > MAX_STEP:
            raise Invalid(f"checkpoint store {address.url}: expected a step of 0 .. {MAX_STEP}, got {step}")
        return Step(step)
    standing = commit_of(store, address.step)
    if standing is not None:
        _check_replaceable(store, address, standing, overwrite=overwrite)
    return address.step


def publish(
    store: SavesTo,
    state: SavedState,
    metadata: Metadata,
    told: Sequence[Sequence[Told]],
    *,
    folder: str | None,
    replaces: bool,
    threads: int,
) -> None:
    """Write the record of contents, prove, and commit; one that `replaces` takes the place of the checkpoint of its
    step, unless that was pinned meanwhile. `told` has what each rank returned. `folder`: by which the program knows it.
    Raises as `checkpoint.commit` and `replace_commit` do; no checkpoint of this write is there then, unless it is what
    was replaced that could not be removed."""
    contents = _contents(state, metadata, told)
    _check_complete(state, contents, metadata)
    data = contents.encode()
    spec = ArraySpec(name=CONTENTS_ARRAY, dtype="uint8", shape=(len(data),), may_be_zero=True)
    layout = with_close_chunks(Layout(mesh=state.mesh, arrays=(*state.arrays.values(), spec), sharding=state.sharding))
    by_rank = [[*rank] for rank in told]
    by_rank[0] += _write_contents(store, state, spec, data)
    if isinstance(store, UploadsParts):
        by_rank[0].append(_completed(store, state, by_rank, threads=threads))
    receipts = [_receipt(state, layout, Rank(rank), of_rank) for rank, of_rank in enumerate(by_rank)]
    candidate = Candidate(
        run=RUN,
        step=state.step,
        write_id=state.write_id,
        attempt=_ATTEMPT,
        committed_us=time.time_ns() // 1000,
    )
    record = complete(store, candidate, layout, receipts, previous=None)
    if folder is not None:
        make_due(store, record.step, record.write_id, folder)
    try:
        publish_record(store, record)
    except Conflict as error:
        if not replaces or error.code != COMMIT_TAKEN:
            raise
        old = commit_of(store, state.step)
        if not isinstance(old, CommitRef):
            raise
        _replace(store, record, old)


def _check_replaceable(
    store: ObjectStore, address: Address, standing: CommitRef | BadCommit, *, overwrite: bool
) -> None:
    what = f"checkpoint of step {address.step} in {address.url}"
    if isinstance(standing, BadCommit):
        raise Conflict(
            f"{what}: expected none or one that can be read, got: {standing.error.message}",
            hint="`behemoth ckpt verify` says more; save as another step",
            code="dcp-unreadable",
        )
    if not overwrite:
        raise Conflict(f"{what}: expected none, got one", hint="save as another step", code="dcp-exists")
    if (standing.step, standing.write_id) in pinned_writes(store):
        raise Conflict(
            f"{what}: expected one that may be replaced, got one that is pinned",
            hint="`behemoth ckpt unpin` it, or save as another step",
            code="dcp-pinned",
        )


def _contents(state: SavedState, metadata: Metadata, told: Sequence[Sequence[Told]]) -> Contents:
    kept = [one for rank in told for one in rank]
    return Contents(
        values={one.key: one.value for one in kept if isinstance(one, KeptValue)},
        pickled={one.key: one.data for one in kept if isinstance(one, KeptPickle)},
        empty=state.empty,
        paths=paths_of(metadata.planner_data),
    )


def _check_complete(state: SavedState, contents: Contents, metadata: Metadata) -> None:
    """Raises Invalid unless the keys in DCP's metadata are those that were written."""
    written = {*state.arrays, *state.empty, *contents.values, *contents.pickled}
    planned = set(metadata.state_dict_metadata)
    if written != planned:
        wrong = sorted(written ^ planned)
        raise Invalid(
            f"checkpoint of step {state.step}: expected the {len(planned)} keys that DCP planned, got {len(written)}; "
            f"{len(wrong)} differ: {wrong[:3]}",
            hint="of planners that cache plans a program may use one class; give the others enable_plan_caching=False",
            code="dcp-keys",
        )


def _write_contents(store: SavesTo, state: SavedState, spec: ArraySpec, data: bytes) -> list[Told]:
    orders = orders_of(state, _COORDINATOR, [spec])
    boxes = [PlacedBox(orders.placed()[spec.name], ((0, len(data)),))]
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    tensors = Tensors(lambda _: tensor)
    if not isinstance(store, UploadsParts):
        (spans,) = write_boxes(store, boxes, tensors, threads=1)
        return [WrittenBox(name=spec.name, spans=spans)]
    (spans,), sent = upload_boxes(store, boxes, tensors, begun={}, pieces_key=orders.pieces_key, threads=1)
    return [WrittenBox(name=spec.name, spans=spans), sent]


def _completed(
    store: UploadsParts, state: SavedState, by_rank: Sequence[Sequence[Told]], *, threads: int
) -> SentObjects:
    """Complete the objects that no rank could send alone."""
    orders = orders_of(state, _COORDINATOR, state.arrays.values())
    sent = [one for of_rank in by_rank for one in of_rank if isinstance(one, SentObjects)]
    objects = complete_shared(store, orders.placed(), state.begun, sent, threads=threads)
    return SentObjects(objects=tuple(objects), parts=(), pieces=(), pieces_key=orders.pieces_key)


def _receipt(state: SavedState, layout: Layout, rank: Rank, told: Sequence[Told]) -> Receipt:
    spans: list[WrittenSpan] = []
    for box in (one for one in told if isinstance(one, WrittenBox) and one.spans):
        position = layout.positions[box.name]
        spans += [span._replace(array=position) for span in box.spans]
    shards = tuple(
        WrittenShard(layout.positions[one.array], one.shard, one.crc)
        for sent in told
        if isinstance(sent, SentObjects)
        for one in sent.objects
    )
    return Receipt(
        rank=rank,
        attempt=_ATTEMPT,
        step=state.step,
        write_id=state.write_id,
        layout_digest=layout.digest,
        spans=tuple(spans),
        shards=shards or msgspec.UNSET,
    )


def _replace(store: ObjectStore, record: CommitRecord, old: CommitRef) -> None:
    """Everything of the new checkpoint is proven and durable. Its record takes the place of the old one's at once, and
    what the old one has goes."""
    replace_commit(store, old, record, record.encode())
    write = old.step, old.write_id
    delete_below(store, step_prefix(*write))
    posted = signposts(store)
    take_down(store, posted, {write})
    forget(store, posted, {write})
    store.delete([marker_key(DELETING, *write)])
