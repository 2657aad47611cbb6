"""A snapshot in another memory that damages, lacks or takes away what a test wants, and a store that has it too."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan, Span


class OtherMemory:
    """A source of `data`, random bytes by default. `damaged`: offsets of bytes that are flipped on their way;
    `ends_after`: the number of reads after which it is gone; `lacks`, `lies_about`: spans that it does not have, or of
    which it tells another CRC."""

    def __init__(
        self,
        plan: RankPlan,
        *,
        data: bytes = b"",
        damaged: Collection[int] = (),
        ends_after: int | None = None,
        lacks: Collection[int] = (),
        lies_about: Collection[int] = (),
    ) -> None:
        self.data = data or os.urandom(plan.data_bytes)
        self.asked: list[tuple[int, int]] = []
        self.num_tables = 0
        self._plan = plan
        self._damaged = damaged
        self._left = ends_after
        self._lacks = lacks
        self._lies_about = lies_about

    def crcs(self) -> Sequence[int | None]:
        self.num_tables += 1
        return [None if one in self._lacks else self._crc(one) for one in range(len(self._plan.spans))]

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        if self._left == 0:
            raise Unavailable("gone")
        self._left = None if self._left is None else self._left - 1
        end = offset_bytes + len(into)
        self.asked.append((offset_bytes, end))
        into[:] = self.data[offset_bytes:end]
        for at in self._damaged:
            if offset_bytes <= at < end:
                into[at - offset_bytes] ^= 1

    def _crc(self, index: int) -> int:
        return crc32c(payload(self.data, self._plan.spans[index])) ^ (index in self._lies_about)


def payload(data: bytes | memoryview, span: Span) -> bytes:
    """What a data area holds of a span."""
    return bytes(data[span.arena_offset : span.arena_offset + span.length])


def commit_of(data: bytes, asked: list[Span]) -> Callable[[Sequence[Span], memoryview], list[int]]:
    """Reads spans of `data` as a store does that has it, and notes them."""

    def read(spans: Sequence[Span], into: memoryview) -> list[int]:
        for span in spans:
            into[span.arena_offset : span.arena_offset + span.length] = payload(data, span)
        asked.extend(spans)
        return [crc32c(payload(data, span)) for span in spans]

    return read
