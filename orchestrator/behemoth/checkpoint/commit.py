"""Turns the receipts of all ranks into one checkpoint, or refuses: proof, metadata, one conditional create.

One leader commits. Before the create nothing that is readable as a checkpoint exists; after it everything does. The
module trusts receipts and nothing else, and reads no array. Neighbours: `proof`, `commit_log`, `writer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from behemoth.base.errors import Corrupt
from behemoth.checkpoint.array_keys import shard_key
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.commit_index import CommitIndex, described, metadata_objects
from behemoth.checkpoint.commit_log import publish
from behemoth.checkpoint.commit_record import CommitRecord, format_of
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.end_proof import Chunks
from behemoth.checkpoint.end_writer import END_THREADS
from behemoth.checkpoint.freshness import check_fresh
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import INDEX, METADATA
from behemoth.checkpoint.proof import Proof, check_zeros, prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.shard_proof import check_shards
from behemoth.checkpoint.small_objects import create_same
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.writer import SEAL_THREADS, seal_all
from behemoth.ports import ObjectStore, Part, SavesTo, UploadsParts, WritesRanges


def commit(
    store: SavesTo,
    candidate: Candidate,
    layout: Layout,
    receipts: Sequence[Receipt],
    *,
    previous: CommitRecord | None,
    threads: int = 1,
) -> CommitRecord:
    """Prove, complete and publish a write of which every rank has sealed its part. Blocks for a listing of the write,
    a few small objects and, on a file system, the ends of chunks that no rank has written.

    `previous` is the newest commit, against which zeros and stale bytes are judged. `threads` compute, beside those
    that wait for the store; the caller's own does where nothing is told. Idempotent for one write id: a new leader may
    repeat it.

    Raises Invalid, Conflict or Corrupt, naming array, rank and reason, before anything is written; later Conflict when
    another write has the step, and the store's errors. Without a return the previous commit stays the newest.
    """
    return publish(store, complete(store, candidate, layout, receipts, previous=previous, threads=threads))


def complete(
    store: SavesTo,
    candidate: Candidate,
    layout: Layout,
    receipts: Sequence[Receipt],
    *,
    previous: CommitRecord | None,
    threads: int = 1,
) -> CommitRecord:
    """All of `commit` but the publication: the record of a write that is proven, complete and durable. For callers that
    must make room first, before they `publish` it. Raises as `commit` does."""
    proof = prove(candidate, layout, receipts, are_files=not isinstance(store, UploadsParts), threads=threads)
    if previous is not None:
        check_zeros(layout, proof, previous)
        check_fresh(layout, proof.arrays, receipts, previous)
    if isinstance(store, UploadsParts):
        check_shards(layout, proof, receipts)
    index = _complete(store, candidate.prefix, layout, proof)
    form, features = format_of(layout)
    return CommitRecord(
        format=form,
        required_features=features,
        run=candidate.run,
        step=candidate.step,
        write_id=candidate.write_id,
        attempt=candidate.attempt,
        mesh=layout.mesh,
        layout_digest=layout.digest,
        index_bytes=len(index),
        index_crc=crc32c(index),
        data_bytes=sum(array.num_bytes for array in layout.arrays),
        arrays=proof.arrays,
        held_prints=proof.held_prints,
        committed_us=candidate.committed_us,
    )


def _complete(store: SavesTo, prefix: str, layout: Layout, proof: Proof) -> bytes:
    """Write what no rank has written (ends of shared chunks, the groups above arrays, the index) and make it durable.
    Returns the encoded index."""
    objects = metadata_objects(layout)
    of_arrays = {f"{path}/{METADATA}" for path in layout.paths}
    _require_written(store, prefix, layout, {name: len(objects[name]) for name in of_arrays})
    index = CommitIndex(
        layout=layout,
        metadata=described(objects),
        content_crcs=tuple(array.content_crc for array in proof.arrays),
    ).encode()
    small = {name: data for name, data in objects.items() if name not in of_arrays} | {INDEX: index}
    if isinstance(store, UploadsParts):
        items = [(f"{prefix}/{name}", data) for name, data in small.items()]
        run_all(lambda item: create_same(store, *item), items, threads=SEAL_THREADS, name="ckpt-create")
    else:
        _write(store, prefix, small, _left_by_file(prefix, layout, proof.left))
    return index


def _left_by_file(prefix: str, layout: Layout, left: Chunks) -> dict[str, tuple[int, list[Part]]]:
    """By key, the files in which ends of chunks are missing: the size of each, and the parts to write."""
    found: dict[tuple[int, int], list[Part]] = {}
    ends = zip(left.array.tolist(), left.data_crc.tolist(), *_places_of_ends(layout, left), strict=True)
    for array, crc, shard, offset_bytes, data_bytes in ends:
        part = Part(offset_bytes=offset_bytes, buffers=[chunk_tail(grids(layout)[array], crc, data_bytes)])
        found.setdefault((array, shard), []).append(part)
    return {
        shard_key(prefix, layout, array, shard): (grids(layout)[array].file_bytes, parts)
        for (array, shard), parts in found.items()
    }


def _places_of_ends(layout: Layout, left: Chunks) -> tuple[list[int], list[int], list[int]]:
    """Of each chunk: its shard, where in that its data end, and how many bytes they are."""
    shards, offsets, data_bytes = (np.empty_like(left.chunk) for _ in range(3))
    order = np.argsort(left.array, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(left.array[order])) + 1):
        if len(rows):
            grid, chunks = grids(layout)[int(left.array[rows[0]])], left.chunk[rows]
            data_bytes[rows] = grid.all_data_bytes()[chunks]
            shards[rows], slots = grid.place(chunks)
            offsets[rows] = slots * grid.stride_bytes + data_bytes[rows]
    return shards.tolist(), offsets.tolist(), data_bytes.tolist()


def _write(
    store: WritesRanges,
    prefix: str,
    small: Mapping[str, bytes],
    left: Mapping[str, tuple[int, Sequence[Part]]],
) -> None:
    def write_ends(key: str) -> None:
        size_bytes, ends = left[key]
        store.write_parts(key, size_bytes=size_bytes, parts=ends)

    run_all(write_ends, left, threads=END_THREADS, name="ckpt-end")
    keys = list(left)
    for name, data in small.items():
        keys.append(f"{prefix}/{name}")
        store.write_parts(keys[-1], size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])
    seal_all(store, keys)


def _require_written(store: ObjectStore, prefix: str, layout: Layout, metadata_bytes: Mapping[str, int]) -> None:
    """Raises Corrupt unless every object that ranks wrote is still there in full size. Otherwise the commit would name
    missing data, or the leader's own writes would create a deleted shard again, full of zeros. Only names and sizes are
    compared: a file that a rank itself created again is found by the first read, whose CRCs do not match."""
    of_arrays = zip(layout.paths, grids(layout), strict=True)
    shards = {f"{path}/{key}": grid.file_bytes for path, grid in of_arrays for key in grid.shard_keys}
    expected_bytes = shards | dict(metadata_bytes)
    found_bytes = {info.key: info.size_bytes for info in store.list(prefix)}
    for name, num_bytes in expected_bytes.items():
        got_bytes = found_bytes.get(f"{prefix}/{name}")
        if got_bytes != num_bytes:
            got = "none" if got_bytes is None else f"one of {got_bytes} bytes"
            raise Corrupt(
                f"file {prefix}/{name}: expected one of {num_bytes} bytes that ranks wrote, got {got}",
                hint="something else deletes files in this store (a clean-up job, another user): stop it; or a server "
                "of the store was killed and has lost what it had acknowledged; the next save, or the same command, "
                "writes everything anew",
                code="shard-gone",
            )
