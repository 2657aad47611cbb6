"""Writes boxes of tensors into the chunks of their arrays: one rank's part of a DCP save.

Bytes go from the tensor's own memory to the store where it is contiguous and on the CPU; anything else is copied a
batch at a time, so that a save needs no second state. What several ranks share, the CRC of a chunk at the border of
their boxes, is left to `checkpoint.commit`, as it is for ranks of ours. Neighbours: `boxes` (which bytes go where),
`checkpoint.writer` (the same from an arena).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.receipt import WrittenSpan
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.turns import BATCH_BYTES, BATCH_SPANS
from behemoth.checkpoint.writer import chunk_tail
from behemoth.checkpoint.zeros import is_zero
from behemoth.dcp.boxes import Run, ends_array, runs_of
from behemoth.dcp.orders import Placed
from behemoth.ports import Part, WritesRanges

_SHARD = 0
"""Our layouts put an array into one object."""
_ITSELF = -1
"""In place of an array's position, which its writer does not know."""


def batches_of(placed: Placed, box: Box) -> Iterator[list[Run]]:
    """The runs of a box, as many together as one call of the store takes."""
    batch: list[Run] = []
    num_bytes = 0
    for run in runs_of(placed.grid, box):
        if batch and (len(batch) >= BATCH_SPANS or num_bytes + run.length_bytes > BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(run)
        num_bytes += run.length_bytes
    yield batch


def write_box(
    store: WritesRanges, placed: Placed, box: Box, tensor: torch.Tensor, *, threads: int
) -> tuple[WrittenSpan, ...]:
    """Write a box, which `tensor` holds; the rank with the array's last element also writes what follows from its shape
    alone. Nothing is durable before the objects of `keys_of` are sealed."""

    def write(batch: Sequence[Run]) -> list[WrittenSpan]:
        return _write(store, placed, batch, tensor)

    batches = list(batches_of(placed, box))
    spans = run_all(write, batches, threads=min(threads, len(batches)), name="dcp-write")
    if ends_array(placed.grid, box):
        _write_ends(store, placed)
    return tuple(span for part in spans for span in part)


def keys_of(placed: Placed, box: Box) -> list[str]:
    """The objects that writing a box touches."""
    shard = f"{placed.folder}/{placed.grid.shard_key(_SHARD)}"
    return [shard, f"{placed.folder}/{METADATA}"] if ends_array(placed.grid, box) else [shard]


def _write(store: WritesRanges, placed: Placed, batch: Sequence[Run], tensor: torch.Tensor) -> list[WrittenSpan]:
    grid = placed.grid
    spans: list[WrittenSpan] = []
    parts: list[Part] = []
    for run in batch:
        data = _bytes_of(tensor, run)
        crc = crc32c(data)
        buffers = [data]
        if run.length_bytes == grid.data_bytes(run.chunk):
            buffers.append(memoryview(chunk_tail(grid, crc, run.length_bytes)))
        parts.append(Part(offset_bytes=grid.chunk_offset_bytes(run.chunk) + run.offset_bytes, buffers=buffers))
        spans.append(WrittenSpan(_ITSELF, run.chunk, run.offset_bytes, run.length_bytes, crc, is_zero(data, crc)))
    store.write_parts(f"{placed.folder}/{grid.shard_key(_SHARD)}", size_bytes=grid.file_bytes, parts=parts)
    return spans


def _write_ends(store: WritesRanges, placed: Placed) -> None:
    grid = placed.grid
    index = Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()])
    store.write_parts(f"{placed.folder}/{grid.shard_key(_SHARD)}", size_bytes=grid.file_bytes, parts=[index])
    document = grid.zarr_json()
    part = Part(offset_bytes=0, buffers=[document])
    store.write_parts(f"{placed.folder}/{METADATA}", size_bytes=len(document), parts=[part])


def _bytes_of(tensor: torch.Tensor, run: Run) -> memoryview:
    """The elements of a run; the tensor's own memory where they are contiguous on the CPU."""
    part = tensor[run.part].detach().cpu().resolve_conj().resolve_neg().contiguous()
    raw: memoryview = part.reshape(-1).view(torch.uint8).numpy().data
    return raw
