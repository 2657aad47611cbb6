"""Turns the receipts of all ranks into one checkpoint, or refuses: proof, metadata, one conditional create.

One leader commits. Before the create nothing that is readable as a checkpoint exists; after it everything does. The
module trusts receipts and nothing else, and reads no array. Neighbours: `proof`, `commit_log`, `writer`.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.base.errors import Corrupt
from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.commit_index import CommitIndex, described, metadata_objects
from behemoth.checkpoint.commit_log import BadCommit, commits, latest, publish, read_record, reject
from behemoth.checkpoint.commit_record import FORMAT_MAJOR, FORMAT_MINOR, CommitRecord, FormatVersion
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.freshness import check_fresh
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import INDEX, step_prefix
from behemoth.checkpoint.proof import Proof, check_zeros, prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.writer import chunk_tail, seal_all
from behemoth.ports import ObjectStore, Part
from behemoth.state.effect import CommitRef

__all__ = ["BadCommit", "CommitRecord", "CommitRef", "commit", "commits", "latest", "read_record", "reject"]


def commit(
    store: ObjectStore,
    *,
    run: str,
    layout: Layout,
    step: Step,
    write_id: WriteId,
    attempt: Attempt,
    receipts: Sequence[Receipt],
    previous: CommitRecord | None,
    committed_us: int = 0,
) -> CommitRecord:
    """Prove, complete and publish a write of which every rank has sealed its part. Blocks for small writes per array.

    `previous` is the newest commit, against which zeros and stale bytes are judged. `committed_us` is wall time, kept
    for people and for retention. Idempotent for one write id: a new leader may repeat it.

    Raises Invalid, Conflict or Corrupt, naming array, rank and reason, before anything is written; later Conflict when
    another write has the step, and the store's errors. Without a return the previous commit stays the newest.
    """
    prefix = step_prefix(step, write_id)
    proof = prove(layout, receipts, step=step, write_id=write_id, attempt=attempt)
    if previous is not None:
        check_zeros(layout, proof, previous)
        check_fresh(layout, proof.arrays, receipts, previous)
    index = _complete(store, prefix, layout, proof)
    return publish(
        store,
        CommitRecord(
            format=FormatVersion(major=FORMAT_MAJOR, minor=FORMAT_MINOR),
            required_features=(),
            run=run,
            step=step,
            write_id=write_id,
            attempt=attempt,
            mesh=layout.mesh,
            layout_digest=layout.digest,
            index_bytes=len(index),
            index_crc=crc32c(index),
            data_bytes=sum(array.num_bytes for array in layout.arrays),
            arrays=proof.arrays,
            rank_prints=proof.rank_prints,
            held_prints=proof.held_prints,
            committed_us=committed_us,
        ),
    )


def _complete(store: ObjectStore, prefix: str, layout: Layout, proof: Proof) -> bytes:
    """Write what no rank could: ends of shared chunks, shard indexes, metadata; make it durable. Returns the index."""
    _require_shards(store, prefix, layout)
    keys: list[str] = []
    tails: dict[int, list[Part]] = {position: [] for position in range(len(layout.arrays))}
    for shared in proof.shared:
        grid = grids(layout)[shared.array]
        tails[shared.array].append(_tail(grid, shared.chunk, shared.data_crc, shared.data_bytes))
    for position, grid in enumerate(grids(layout)):
        key = f"{prefix}/{layout.paths[position]}/{grid.chunk_key}"
        ending = Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()])
        store.write_parts(key, size_bytes=grid.file_bytes, parts=[*tails[position], ending])
        keys.append(key)
    objects = metadata_objects(layout)
    index = CommitIndex(
        layout=layout,
        metadata=described(objects),
        content_crcs=tuple(array.content_crc for array in proof.arrays),
    ).encode()
    for name, data in {**objects, INDEX: index}.items():
        key = f"{prefix}/{name}"
        store.write_parts(key, size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])
        keys.append(key)
    seal_all(store, keys)
    return index


def _require_shards(store: ObjectStore, prefix: str, layout: Layout) -> None:
    """A shard that somebody has taken away since its ranks wrote it must not be made again as zeros."""
    sizes = {info.key: info.size_bytes for info in store.list(prefix)}
    for path, grid in zip(layout.paths, grids(layout), strict=True):
        size_bytes = sizes.get(f"{prefix}/{path}/{grid.chunk_key}")
        if size_bytes != grid.file_bytes:
            got = "none" if size_bytes is None else f"one of {size_bytes} bytes"
            raise Corrupt(
                f"array {grid.spec.name!r}: expected the file of {grid.file_bytes} bytes that ranks wrote, got {got}",
                hint="somebody else cleans up in this store",
                code="shard-gone",
            )


def _tail(grid: Grid, chunk: int, data_crc: int, data_bytes: int) -> Part:
    offset = grid.chunk_offset_bytes(chunk) + data_bytes
    return Part(offset_bytes=offset, buffers=[chunk_tail(grid, data_crc, data_bytes)])
