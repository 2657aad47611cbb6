"""Fills a rank's arena from another memory that holds the same snapshot; no byte is believed before its CRC.

The source may change or vanish at any time: what cannot be proven is no snapshot. Bytes land where they shall lie, and
their CRCs are computed while they are in the caches. Neighbours: `arena`, and whoever implements SnapshotSource.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.threads import run_all

BLOCK_BYTES = 8 << 20
"""What is asked for at once."""


class SnapshotSource(Protocol):
    """A verified snapshot of one rank's plan in another memory. Two methods, because a memory of another node has
    nothing else to tell; both may be called from several threads and raise Behemoth's errors."""

    def crcs(self) -> Sequence[int]:
        """CRC-32C of every span, in plan order. Called once, first."""
        ...

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        """Bytes of the data area. They may be wrong: the caller checks."""
        ...


def copy_snapshot(
    source: SnapshotSource,
    plan: RankPlan,
    arena: Arena,
    generation: int,
    *,
    write_id: WriteId,
    step: Step,
    threads: int,
    pace: Callable[[int], None] = lambda _num_bytes: None,
) -> Snapshot:
    """Fill `generation`, and seal it as a verified snapshot. `pace` is called before each block with its size, and may
    wait or raise. Raises Conflict when a byte is not what was saved, and the source's errors. Before the source has
    told its CRCs the generation is untouched; after a later error it holds no snapshot."""
    crcs = source.crcs()
    data = arena.begin(generation, write_id, step, plan.layout_digest)

    def copy(block: Sequence[tuple[Span, int]]) -> None:
        start, end = block[0][0].arena_offset, _end(block[-1][0])
        pace(end - start)
        source.read_into(start, data[start:end])
        for span, expected in block:
            got = crc32c(data[span.arena_offset : _end(span)])
            if got != expected:
                raise Conflict(
                    f"rank {plan.rank}, write {write_id}: expected CRC-32C {expected:08x}, got {got:08x} over "
                    f"{span.length} bytes at {span.arena_offset}",
                    hint="the memory that it came from was filled anew, or is damaged",
                    code="copy-crc",
                )

    run_all(copy, _blocks(plan.spans, crcs), threads=threads, name="ckpt-copy")
    arena.record_crcs(generation, arena.seal(generation).sequence, crcs)
    return arena.snapshot(generation)


def _blocks(spans: Sequence[Span], crcs: Sequence[int]) -> Iterator[list[tuple[Span, int]]]:
    """Spans that lie side by side, with their CRCs, some MiB together."""
    block: list[tuple[Span, int]] = []
    for span, crc in zip(spans, crcs, strict=True):
        if block and _end(span) - block[0][0].arena_offset > BLOCK_BYTES:
            yield block
            block = []
        block.append((span, int(crc)))
    if block:
        yield block


def _end(span: Span) -> int:
    return span.arena_offset + span.length
