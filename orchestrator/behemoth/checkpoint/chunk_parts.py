"""Copies the parts of a chunk that slabs need into place: unchanged, or converted.

Works on memory only; the caller has checked the chunk. Neighbours: `reshard` (plans the copies), `changes`
(computes), `reshard_reader` and `scaled_reader` (read).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.changes import Elements, Scales, ScaleTable
from behemoth.checkpoint.chunk_reader import DIRECT_BYTES, ChunkReader
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.reshard import ChunkRead, Copy, Slices

Bytes = npt.NDArray[np.uint8]


class PlacedChunk(NamedTuple):
    """A chunk's payload that was read straight into its place (address and size), and its CRC-32C."""

    address: int
    num_bytes: int
    crc: int


def read_chunk(
    chunks: ChunkReader,
    grid: Grid,
    read: ChunkRead,
    slabs: Sequence[Elements],
    tables: Mapping[Scales, ScaleTable],
) -> PlacedChunk | None:
    """Read a chunk, check it, and put into the slabs what they take of it; `tables` has the scales of those that change
    it. Tells where it went if it went straight into place. Raises Corrupt naming array, chunk and file."""
    only = read.copies[0]
    if len(read.copies) == 1 and only.change is None:
        target = part_of(slabs[only.slab], only.target)
        is_whole = target.nbytes == grid.payload_bytes and target.flags.c_contiguous
        if is_whole and target.nbytes >= DIRECT_BYTES:
            place = target.reshape(-1).view(np.uint8).data
            return PlacedChunk(address_of(place), place.nbytes, chunks.payload_into(read.array, read.chunk, place))
    with chunk_elements(chunks, grid, read.array, read.chunk) as chunk:
        for copy in read.copies:
            put(copy, part_of(chunk, copy.source), slabs, tables)
    return None


@contextmanager
def chunk_elements(chunks: ChunkReader, grid: Grid, array: int, chunk: int) -> Iterator[Elements]:
    """A chunk, checked, in its shape, padding included; not to be changed. Valid as long as this lasts. Raises Corrupt
    naming array, chunk and file."""
    with chunks.lent(array, chunk) as payload:
        yield as_elements(np.frombuffer(payload, dtype=np.uint8), grid.chunk_shape, grid.spec.itemsize)


def put(copy: Copy, elements: Elements, slabs: Sequence[Elements], tables: Mapping[Scales, ScaleTable]) -> None:
    """Put a copy's elements into its slab."""
    target = part_of(slabs[copy.slab], copy.target)
    if copy.change is None:
        np.copyto(target, elements)
    else:
        copy.change.apply(elements, target, copy.target, tables)


def as_elements(area: Bytes, shape: tuple[int, ...], itemsize: int) -> Elements:
    """A view of the first bytes of `area` as an array of raw elements of this shape."""
    return area[: math.prod(shape) * itemsize].view(f"V{itemsize}").reshape(shape)


def part_of(whole: Elements, part: Slices) -> Elements:
    """A view of the part of `whole`."""
    index: tuple[slice | EllipsisType, ...] = (*part, ...)  # never a scalar, also of an array without dims
    return whole[index]
