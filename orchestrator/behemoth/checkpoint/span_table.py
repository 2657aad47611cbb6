"""The spans of a receipt as columns: a save of 24 TB by 32,000 ranks has 17.6 million, and one process judges them all.

As Python objects they take gigabytes and most of a minute; as columns 33 bytes each, and 7 compressed on the network,
since nearly all columns but the CRCs repeat themselves. The neighbour is `receipt`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple, cast, overload

import msgspec
import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Crc = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]

MAX_TABLE_BYTES = 64 << 20
"""Most bytes of the table of one receipt, unpacked."""
_LOOSE_SPANS = 1 << 16
_LEVEL = 1  # of zlib: more costs time and saves little, since CRCs have no pattern


class WrittenSpan(NamedTuple):
    """Bytes `offset` .. `offset + length` of one chunk, with their CRC-32C. `array` counts in the layout's order."""

    array: _Count
    chunk: _Count
    offset: _Count
    length: _Count
    crc: _Crc
    is_zero: bool


_ROW = np.dtype(
    [("array", "<u4"), ("chunk", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("crc", "<u4"), ("is_zero", "?")]
)


class SpanTable(Sequence[WrittenSpan]):
    """An immutable sequence of spans; equal to a tuple or list of the same spans."""

    __slots__ = ("_rows",)

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        self._rows = rows

    @staticmethod
    def of(spans: Sequence[WrittenSpan]) -> SpanTable:
        return spans if isinstance(spans, SpanTable) else SpanTable(np.array(list(spans), dtype=_ROW))

    @property
    def num_bytes(self) -> int:
        """Unpacked."""
        return self._rows.nbytes

    def column(self, name: str) -> npt.NDArray[np.generic]:
        """One field of all spans, as WrittenSpan names it."""
        return self._rows[name]

    def encode(self) -> bytes:
        """Column after column, packed by zlib; how many spans there are is told beside it."""
        return zlib.compress(b"".join(self._rows[name].tobytes() for name in _ROW.names or ()), _LEVEL)

    @staticmethod
    def decode(data: bytes, *, num_spans: int) -> SpanTable:
        """Raises Corrupt for what is not exactly so many spans, before it takes more memory than those have."""
        num_bytes = num_spans * _ROW.itemsize
        if num_bytes > MAX_TABLE_BYTES:
            raise Corrupt(f"spans: expected at most {MAX_TABLE_BYTES} bytes, got {num_bytes}", code="receipt-size")
        unpacking = zlib.decompressobj()
        try:
            columns = unpacking.decompress(data, num_bytes + 1)
        except zlib.error as error:
            raise Corrupt(f"spans: expected {num_spans} of them, packed, got {error}", code="receipt-spans") from error
        if len(columns) != num_bytes or not unpacking.eof or unpacking.unused_data:
            raise Corrupt(
                f"spans: expected {num_bytes} bytes for {num_spans} of them, got others", code="receipt-spans"
            )
        rows, at = np.empty(num_spans, _ROW), 0
        for name in _ROW.names or ():
            kind = _ROW[name]
            rows[name] = np.frombuffer(columns, kind, num_spans, at)
            at += num_spans * kind.itemsize
        return SpanTable(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> WrittenSpan: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[WrittenSpan]: ...
    def __getitem__(self, at: int | slice) -> WrittenSpan | Sequence[WrittenSpan]:
        if isinstance(at, slice):
            return tuple(WrittenSpan(*row) for row in self._rows[at].tolist())
        return WrittenSpan(*cast(tuple[int, int, int, int, int, bool], self._rows[at].item()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SpanTable):
            return bool(np.array_equal(self._rows, other._rows))
        return isinstance(other, tuple | list) and self[:] == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up


class GrowingTable:
    """Collects the spans of many batches, in any order. Used by one thread."""

    def __init__(self) -> None:
        self._packed: list[npt.NDArray[np.void]] = []
        self._loose: list[WrittenSpan] = []

    def add(self, spans: Sequence[WrittenSpan]) -> None:
        self._loose += spans
        if len(self._loose) >= _LOOSE_SPANS:
            self._pack()

    def table(self) -> SpanTable:
        """All spans, by array, chunk and offset. Of spans that were added twice, since a batch may be done twice, the
        last one counts."""
        self._pack()
        rows = np.concatenate(self._packed)
        rows = rows[np.lexsort((rows["offset"], rows["chunk"], rows["array"]))]  # stable
        keys = rows[["array", "chunk", "offset"]]
        return SpanTable(rows[np.append(keys[1:] != keys[:-1], True)[: len(rows)]])

    def _pack(self) -> None:
        self._packed.append(np.array(self._loose, dtype=_ROW))
        self._loose.clear()
