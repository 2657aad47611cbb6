"""Writes boxes of tensors into the chunks of their arrays on files: one rank's part of a DCP save.

Bytes go from the tensor's own memory to the store where it is contiguous and on the CPU; anything else is copied a
batch at a time, so that a save needs no second state. What several ranks share, the CRC of a chunk at the border of
their boxes, is left to `checkpoint.commit`, as it is for ranks of ours. Neighbours: `boxes` (which bytes go where),
`tensors` (where they come from), `checkpoint.writer` (the same from an arena).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from typing_extensions import Buffer

from behemoth.checkpoint.box import Box, num_elements
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.sealing import Sealing
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.turns import Turns
from behemoth.checkpoint.zeros import is_zero
from behemoth.dcp.boxes import ChunkRun, ends_array, runs_of
from behemoth.dcp.orders import PlacedArray
from behemoth.dcp.tensors import Tensors, bytes_of
from behemoth.ports import Part, WritesRanges

_SHARD = 0
"""Layouts for files put an array into one object."""
ITSELF = -1
"""Placeholder for an array's position in the layout, which its writer does not know."""


class PlacedBox(NamedTuple):
    """A box, not empty, and the array that it is of."""

    placed: PlacedArray
    box: Box


def write_boxes(
    store: WritesRanges, boxes: Sequence[PlacedBox], tensors: Tensors, *, threads: int
) -> list[tuple[WrittenSpan, ...]]:
    """Write boxes, which `tensors` gives by their place in the list; the spans of each. Blocks until all is durable.

    The rank with an array's last element also writes what follows from its shape alone. What is complete is sealed
    while others are written."""
    runs = [run for number, one in enumerate(boxes) for run in runs_of(one.placed.grid, one.box, number)]
    turns = Turns(runs)
    spans: list[list[WrittenSpan]] = [[] for _ in range(turns.num_batches)]

    def work(_thread: int) -> None:
        try:
            while (batch := turns.take()) is not None:
                box = boxes[batch.array]
                spans[batch.number] = _write(store, box.placed, batch.spans, tensors)
                if turns.done(batch):
                    tensors.drop(batch.array)
                    sealing.add(_keys_of(box), num_bytes=_num_bytes(box))
        finally:
            turns.stop()

    with Sealing(store.seal) as sealing:
        run_all(work, range(threads), threads=threads, name="dcp-write")
        sealing.finish()
    of_box: list[list[WrittenSpan]] = [[] for _ in boxes]
    for span, run in zip((span for batch in spans for span in batch), runs, strict=True):
        of_box[run.array].append(span)
    return [tuple(one) for one in of_box]


def _num_bytes(one: PlacedBox) -> int:
    """Bytes of a box's elements: other ranks account for what they write into the same object."""
    return num_elements(one.box) * one.placed.grid.spec.itemsize


def _keys_of(one: PlacedBox) -> list[str]:
    """The objects that writing a box touches."""
    return [_shard_key(one.placed), *([_metadata_key(one.placed)] if ends_array(one.placed.grid, one.box) else [])]


def _shard_key(placed: PlacedArray) -> str:
    return f"{placed.folder}/{placed.grid.shard_key(_SHARD)}"


def _metadata_key(placed: PlacedArray) -> str:
    return f"{placed.folder}/{METADATA}"


def _write(store: WritesRanges, placed: PlacedArray, batch: Sequence[ChunkRun], tensors: Tensors) -> list[WrittenSpan]:
    grid = placed.grid
    spans: list[WrittenSpan] = []
    parts: list[Part] = []
    for run in batch:
        data = bytes_of(tensors.of(run.array), run.part)
        crc = crc32c(data)
        buffers: list[Buffer] = [data]
        if run.length == grid.data_bytes(run.chunk):
            buffers.append(chunk_tail(grid, crc, run.length))
        parts.append(Part(offset_bytes=grid.chunk_offset_bytes(run.chunk) + run.offset, buffers=buffers))
        spans.append(WrittenSpan(ITSELF, run.chunk, run.offset, run.length, crc, is_zero(data, crc)))
    is_end = run.chunk == grid.num_chunks - 1 and run.offset + run.length == grid.data_bytes(run.chunk)
    if is_end:
        parts.append(Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()]))
    store.write_parts(_shard_key(placed), size_bytes=grid.file_bytes, parts=parts)
    if is_end:
        document = grid.zarr_json()
        whole = Part(offset_bytes=0, buffers=[document])
        store.write_parts(_metadata_key(placed), size_bytes=len(document), parts=[whole])
    return spans
