"""The spans of a receipt as columns: a save of 24 TB by 32,000 ranks has 17.6 million, and one process judges them all.

As Python objects they take gigabytes and most of a minute; as columns 21 bytes each, and 6 compressed on the network,
since nearly all columns but the CRCs repeat themselves. The neighbour is `receipt`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, NamedTuple, overload

import msgspec
import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Crc = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]

MAX_TABLE_BYTES = 64 << 20
"""Most bytes of the table of one receipt, unpacked."""
_LOOSE_SPANS = 1 << 16
_LEVEL = 1  # of zlib: more costs time and saves little


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


class _Field(NamedTuple):
    """A column of a table. `at`: how many bytes each span has in the columns before it."""

    kind: np.dtype[np.generic]
    at: int


def _fields(number: str) -> dict[str, _Field]:
    """All columns but that of CRCs. `number`: the kind of chunks, offsets and lengths."""
    kinds = {"array": "<u4", "chunk": number, "offset": number, "length": number, "is_zero": "?"}
    starts = accumulate((np.dtype(kind).itemsize for kind in kinds.values()), initial=0)
    return {name: _Field(np.dtype(kind), at) for (name, kind), at in zip(kinds.items(), starts, strict=False)}


_CRC = np.dtype("<u4")
_NARROW, _WIDE = b"\x04", b"\x08"
"""Bytes of a number: four where that is enough for all of a table."""
_FIELDS = {_NARROW: _fields("<u4"), _WIDE: _fields("<u8")}
_SPAN_BYTES = {width: sum(kind.itemsize for kind, _ in fields.values()) for width, fields in _FIELDS.items()}


class SpanColumns(NamedTuple):
    """The fields of many spans, as WrittenSpan names them."""

    array: npt.NDArray[np.uint32]
    chunk: npt.NDArray[np.unsignedinteger]
    offset: npt.NDArray[np.unsignedinteger]
    length: npt.NDArray[np.unsignedinteger]
    crc: npt.NDArray[np.uint32]
    is_zero: npt.NDArray[np.bool_]


class SpanTable(Sequence[WrittenSpan]):
    """An immutable sequence of spans; equal to a tuple or list of the same spans.

    Its columns stay as they come from the wire, one behind the other, since 32,000 tables are looked at all together.
    Of arrays there are the steps from one span to the next, which are nearly all alike.
    """

    __slots__ = ("_columns", "_crcs", "_num_spans", "_width")

    def __init__(self, columns: bytes, crcs: bytes, width: bytes) -> None:
        self._columns = columns
        self._crcs = crcs
        self._width = width
        self._num_spans = len(crcs) // _CRC.itemsize

    @staticmethod
    def of(spans: Sequence[WrittenSpan]) -> SpanTable:
        return spans if isinstance(spans, SpanTable) else SpanTable._of_rows(np.array(list(spans), dtype=_ROW))

    @staticmethod
    def _of_rows(rows: npt.NDArray[np.void]) -> SpanTable:
        most = max(int(rows[name].max(initial=0)) for name in ("chunk", "offset", "length"))
        width = _NARROW if most < 1 << 32 else _WIDE
        columns = {name: rows[name] for name in _FIELDS[width]}
        columns["array"] = np.diff(columns["array"], prepend=np.uint32(0))  # modulo 2^32
        return SpanTable(_packed(columns, width), rows["crc"].tobytes(), width)

    @property
    def num_bytes(self) -> int:
        """Unpacked."""
        return len(self._columns) + len(self._crcs)

    @staticmethod
    def joined(tables: Sequence[SpanTable]) -> SpanColumns:
        """The spans of all tables, one table after the other."""
        width = max((table._width for table in tables), default=_NARROW)
        views = [(memoryview(table._in(width)), table._num_spans) for table in tables]
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, (kind, at) in _FIELDS[width].items():
            data = b"".join([view[at * num : (at + kind.itemsize) * num] for view, num in views])
            columns[name] = np.frombuffer(data, kind)
        columns["array"] = _summed(columns["array"], [num for _, num in views])
        columns["crc"] = np.frombuffer(b"".join([table._crcs for table in tables]), _CRC)
        return SpanColumns(**columns)

    def encode(self) -> bytes:
        """Bytes of a number, CRCs, which have no pattern, and the other columns packed by zlib; how many spans there
        are is told beside it."""
        return self._width + self._crcs + zlib.compress(self._columns, _LEVEL)

    @staticmethod
    def decode(data: bytes, *, num_spans: int) -> SpanTable:
        """Raises Corrupt for what is not exactly so many spans, before it takes more memory than those have."""
        width = data[:1] if data[:1] in _FIELDS else _NARROW
        num_bytes, crcs_end = num_spans * _SPAN_BYTES[width], 1 + num_spans * _CRC.itemsize
        if num_bytes + crcs_end > MAX_TABLE_BYTES:
            raise Corrupt(
                f"spans: expected at most {MAX_TABLE_BYTES} bytes, got {num_bytes + crcs_end}", code="receipt-size"
            )
        unpacking = zlib.decompressobj()
        try:
            columns = unpacking.decompress(data[crcs_end:], num_bytes + 1)
        except zlib.error as error:
            raise Corrupt(f"spans: expected {num_spans} of them, packed, got {error}", code="receipt-spans") from error
        if data[:1] != width or len(columns) != num_bytes or not unpacking.eof or unpacking.unused_data:
            raise Corrupt(
                f"spans: expected {num_bytes} bytes for {num_spans} of them, got others", code="receipt-spans"
            )
        return SpanTable(columns, data[1:crcs_end], width)

    def __len__(self) -> int:
        return self._num_spans

    @overload
    def __getitem__(self, at: int) -> WrittenSpan: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[WrittenSpan]: ...
    def __getitem__(self, at: int | slice) -> WrittenSpan | Sequence[WrittenSpan]:
        columns = (column[at].tolist() for column in SpanTable.joined([self]))
        return (
            tuple(map(WrittenSpan._make, zip(*columns, strict=True)))
            if isinstance(at, slice)
            else WrittenSpan._make(columns)
        )

    def __iter__(self) -> Iterator[WrittenSpan]:
        return iter(self[:])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SpanTable):
            width = max(self._width, other._width)
            return self._crcs == other._crcs and self._in(width) == other._in(width)
        return isinstance(other, tuple | list) and self[:] == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up

    def _in(self, width: bytes) -> bytes:
        """The columns with numbers of so many bytes, no fewer than they have."""
        if width == self._width:
            return self._columns
        num, fields = self._num_spans, _FIELDS[self._width].items()
        return _packed({name: np.frombuffer(self._columns, kind, num, at * num) for name, (kind, at) in fields}, width)


def _packed(columns: Mapping[str, npt.NDArray[Any]], width: bytes) -> bytes:
    return b"".join(columns[name].astype(kind).tobytes() for name, (kind, _) in _FIELDS[width].items())


def _summed(steps: npt.NDArray[np.uint32], nums: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Where the steps lead in each of several tables, which have so many of them. Modulo 2^32, as they are."""
    sums = np.cumsum(np.append(np.uint32(0), steps), dtype=np.uint32)
    starts = np.cumsum([0, *nums])[:-1]
    found: npt.NDArray[np.uint32] = sums[1:] - np.repeat(sums[starts], nums)
    return found


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
        return SpanTable._of_rows(rows[np.append(keys[1:] != keys[:-1], True)[: len(rows)]])

    def _pack(self) -> None:
        self._packed.append(np.array(self._loose, dtype=_ROW))
        self._loose.clear()
