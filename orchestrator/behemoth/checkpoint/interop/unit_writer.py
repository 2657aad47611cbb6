"""Writes units of a checkpoint's objects to any kind of store, from any source of elements.

It decides nothing and keeps no state: the result of a unit has all that completing the object and proving the
checkpoint need, so that units can be written on any machine. Neighbours: `units`, `object_uploads` (completes),
`checkpoint.writer` (the same for a rank's arena).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.ids import UploadId
from behemoth.checkpoint.array_keys import metadata_key, shard_key
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.tensors import Raw, Tensor, read_box
from behemoth.checkpoint.interop.units import UnitPiece, WriteUnit
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.part_bytes import Summed
from behemoth.checkpoint.small_objects import create_same
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.stopping import Cancelled, never, require_wanted
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.writer import seal_all
from behemoth.checkpoint.zeros import is_zero
from behemoth.ports import Part, SavesTo, UploadsParts


class Source(Protocol):
    """The source of the elements of a checkpoint that is to be written. Exactly one method, for several pieces at a
    time, because pieces that are needed together may come from the same bytes. Thread-safe."""

    def read(self, pieces: Sequence[UnitPiece], *, threads: int) -> Iterator[Raw]:
        """The elements of each piece's box, in order: raw (`tensors.Raw`), in the shape of the box, owned by the
        caller. Blocks. Uses at most `threads` threads."""
        ...


class Written(NamedTuple):
    """The result of writing a unit, which is durable. `etag` is empty where the unit is not a part of an upload. `crc`:
    CRC-32C of its bytes as they are in the object; 0 for files."""

    array: int
    shard: int
    number: int
    spans: list[WrittenSpan]
    num_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
    crc: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
    etag: str
    upload_id: str


class TensorSource:
    """A Source whose arrays are tensors of the same names."""

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = [tensors[array.name] for array in layout.arrays]

    def read(self, pieces: Sequence[UnitPiece], *, threads: int) -> Iterator[Raw]:  # noqa: ARG002 (one reads in order)
        """See the protocol. Holds one piece at a time."""
        for piece in pieces:
            yield read_box(self._tensors[piece.array], piece.box)


def brings_metadata(one: WriteUnit | Written) -> bool:
    """Whether the array's zarr.json is written with this unit."""
    return (one.shard, one.number) == (0, 1)


class UnitWriter:
    """Writes below the `prefix` of a write. Thread-safe. Once it is `cancelled()` no unit is written any more."""

    def __init__(
        self,
        store: SavesTo,
        prefix: str,
        layout: Layout,
        source: Source,
        *,
        cancelled: Cancelled = never,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._layout = layout
        self._source = source
        self._cancelled = cancelled

    def write(self, units: Sequence[WriteUnit], upload_ids: Sequence[str], *, threads: int = 1) -> list[Written]:
        """Write units, and with the first one of an array its zarr.json. Idempotent; several processes may do so at
        once. `upload_ids`: of those units that are parts of an upload, empty for others. With several threads all of
        the units are held. Raises Conflict when it is cancelled."""
        require_wanted(self._cancelled, what=f"write below {self._prefix}")
        data = self._source.read([piece for unit in units for piece in unit.pieces], threads=threads)
        keys: dict[str, None] = {}
        for unit in units:
            if brings_metadata(unit):
                keys[self._write_metadata(unit.array)] = None
            keys[shard_key(self._prefix, self._layout, unit.array, unit.shard)] = None
        each = ((unit, [next(data) for _ in unit.pieces], id_) for unit, id_ in zip(units, upload_ids, strict=True))
        found = run_all(self._write, each, threads=threads, name="ckpt-units")
        if not isinstance(self._store, UploadsParts):
            seal_all(self._store, list(keys))
        return found

    def _write(self, of_unit: tuple[WriteUnit, Sequence[Raw], str]) -> Written:
        unit, data, upload_id = of_unit
        key = shard_key(self._prefix, self._layout, unit.array, unit.shard)
        require_wanted(self._cancelled, what=f"write {key}")
        grid = grids(self._layout)[unit.array]
        summed, spans = Summed(), []
        pairs = zip(unit.pieces, data, strict=True)
        for number, chunk in (each for piece, raw in pairs for each in _chunks(grid, piece, raw)):
            span = _span(unit.array, number, chunk)
            spans.append(span)
            summed.add([chunk.data], span.crc, span.length)
            summed.append(chunk_tail(grid, span.crc, span.length))
        if unit.pieces[-1].last == grid.num_slots:
            summed.append(grid.index())
        num_bytes = sum(memoryview(buffer).nbytes for buffer in summed.buffers)
        crc, etag = 0, ""
        if isinstance(self._store, UploadsParts):
            crc = summed.crc
            etag = _upload(self._store, key, unit, summed.buffers, crc, upload_id)
        else:
            part = Part(offset_bytes=unit.first * grid.stride_bytes, buffers=summed.buffers)
            self._store.write_parts(key, size_bytes=grid.file_bytes, parts=[part])
        return Written(unit.array, unit.shard, unit.number, spans, num_bytes, crc, etag, upload_id)

    def _write_metadata(self, array: int) -> str:
        key = metadata_key(self._prefix, self._layout, array)
        data = grids(self._layout)[array].zarr_json()
        if isinstance(self._store, UploadsParts):
            create_same(self._store, key, data)
        else:
            parts = [Part(offset_bytes=0, buffers=[data])]
            self._store.write_parts(key, size_bytes=len(data), parts=parts)
        return key


def _upload(store: UploadsParts, key: str, unit: WriteUnit, buffers: Sequence[Buffer], crc: int, upload_id: str) -> str:
    """The etag of a part; empty for what goes in one request."""
    if unit.num_parts == 1:
        create_same(store, key, b"".join(buffers))
        return ""
    return store.upload_part(key, UploadId(upload_id), number=unit.number, buffers=buffers, crc=crc).etag


def _chunks(grid: Grid, piece: UnitPiece, data: Raw) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Numbers and bytes of a piece's chunks."""
    for number in grid.chunks_of(piece.shard)[piece.first : piece.last].tolist():
        chunk = data[_within(grid.chunk_box(number), piece.box)]
        yield number, np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)


def _within(chunk: tuple[slice, ...], box: Box) -> tuple[slice, ...]:
    return tuple(slice(part.start - start, part.stop - start) for part, (start, _) in zip(chunk, box, strict=True))


def _span(position: int, number: int, data: npt.NDArray[np.uint8]) -> WrittenSpan:
    crc = crc32c(data.data)
    return WrittenSpan(
        array=position, chunk=number, offset=0, length=data.nbytes, crc=crc, is_zero=is_zero(data.data, crc)
    )
