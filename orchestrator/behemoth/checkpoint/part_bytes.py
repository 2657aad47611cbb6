"""The bytes of a part, in order, and their CRC: from the rank's own arena, and from other ranks.

Own bytes are views, not copies. CRCs of chunks are combined from those of their fragments, so that each byte is read
once for all CRCs. Neighbours: `part_plan`, which says what a part is made of, `upload_writer`, which sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from typing_extensions import Buffer

from behemoth.base.ids import Rank
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import combine, crc32c, crc_of
from behemoth.checkpoint.exchange import Exchange, OpenWrite
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.part_plan import Fragment, PlannedPart
from behemoth.checkpoint.zeros import crc_of_zeros


class Summed:
    """A growing list of buffers, and the CRC-32C of their concatenation."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.crc = 0

    def add(self, buffers: Iterable[Buffer], crc: int, num_bytes: int) -> None:
        """Append buffers of `num_bytes` together, whose CRC-32C together is `crc`."""
        self.crc = combine(self.crc, crc, num_bytes)
        self.buffers += buffers

    def append(self, data: bytes) -> None:
        """Append a small buffer, whose CRC is computed here."""
        self.crc = crc32c(data, self.crc)
        self.buffers.append(data)


class Content(NamedTuple):
    """What a part consists of. `crc` is that of all its bytes, `payload_crc` that of chunks' data and padding alone,
    `payload_bytes` of them: behind these stand their own CRCs, with which all bytes have the same CRC whatever they
    are."""

    buffers: list[Buffer]
    crc: int
    payload_crc: int
    payload_bytes: int


class PartBytes:
    """The parts of one rank. Thread-safe."""

    def __init__(
        self,
        layout: Layout,
        rank: Rank,
        upload: OpenWrite,
        exchange: Exchange,
        *,
        cancelled: Callable[[], bool],
    ) -> None:
        self._grids = grids(layout)
        self._rank = rank
        self._upload = upload
        self._exchange = exchange
        self._cancelled = cancelled

    def of(self, part: PlannedPart) -> Content:
        """Raises what the exchange does."""
        grid = self._grids[part.shard.array]
        summed, payload_crc, payload_bytes = Summed(), 0, 0
        chunk_crc = self._head_crc(part.head)
        for fragment, views in zip(part.data, self._data(part.data), strict=True):
            crc = crc_of(views)
            chunk_crc = combine(chunk_crc, crc, fragment.length) if fragment.offset else crc
            summed.add(views, crc, fragment.length)
            end_bytes, num_bytes = fragment.offset + fragment.length, fragment.length
            if end_bytes == grid.data_bytes(fragment.chunk):
                summed.append(chunk_tail(grid, chunk_crc, end_bytes))
                padding = grid.payload_bytes - end_bytes
                crc, num_bytes = combine(crc, crc_of_zeros(padding), padding), num_bytes + padding
            payload_crc, payload_bytes = combine(payload_crc, crc, num_bytes), payload_bytes + num_bytes
        if part.is_last:
            summed.append(grid.index())
        return Content(summed.buffers, summed.crc, payload_crc, payload_bytes)

    def _head_crc(self, head: Sequence[Fragment]) -> int:
        """CRC-32C of the first chunk's data that earlier parts contain."""
        total = 0
        for rank, group in groupby(head, key=lambda fragment: fragment.rank):
            fragments = list(group)
            for fragment, crc in zip(fragments, self._crcs(rank, fragments), strict=True):
                total = combine(total, crc, fragment.length)
        return total

    def _crcs(self, rank: Rank, fragments: Sequence[Fragment]) -> Sequence[int]:
        if rank == self._rank:
            return self._upload.crcs_of(fragments, cancelled=self._cancelled)
        return self._exchange.crcs(rank, fragments, cancelled=self._cancelled)

    def _data(self, fragments: Sequence[Fragment]) -> Iterator[list[memoryview]]:
        """The bytes of each fragment; consecutive fragments of one rank are fetched in one request."""
        for rank, group in groupby(fragments, key=lambda fragment: fragment.rank):
            of_rank = list(group)
            if rank == self._rank:
                yield from (self._upload.views(fragment) for fragment in of_rank)
                continue
            room = memoryview(bytearray(sum(fragment.length for fragment in of_rank)))
            self._exchange.fetch(rank, of_rank, room, cancelled=self._cancelled)
            at = 0
            for fragment in of_rank:
                yield [room[at : at + fragment.length]]
                at += fragment.length
