"""One rank's part of one write: what is written, from where, and the receipt for it.

The writers to file systems and to object storage take the same input and give the same receipt; only the way of the
bytes differs. Opens and writes nothing. Neighbours: `writer` and `upload_writer`, which carry it out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Attempt, Step
from behemoth.checkpoint import array_keys
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.following import Follower
from behemoth.checkpoint.freshness import held_crc
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.receipt import Freshness, Receipt
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.zeros import is_zero


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWrite:
    """Write the owned spans of the snapshot in `generation` to objects below `prefix`, on `threads` threads.

    Raises Invalid unless layout, plan and arena are of one layout and rank.
    """

    prefix: str
    layout: Layout
    plan: RankPlan
    arena: Arena
    generation: int
    attempt: Attempt
    threads: int
    cancelled: Callable[[], bool]
    """Called often, from several threads; True ends the write with Conflict."""
    following: int | None = None
    """The sequence of a filling that was begun: the snapshot may still be unfinished. None: it is whole already."""
    updated_step: Step | None = None
    """The last step in which the program announced an update; None when it has announced none."""
    frozen: Collection[int] = ()
    """Positions of the arrays that the program declared frozen."""

    def __post_init__(self) -> None:
        digests = {self.layout.digest, self.plan.layout_digest, self.arena.layout_digest}
        if len(digests) > 1 or self.arena.rank != self.plan.rank:
            raise Invalid(
                f"rank {self.plan.rank}: expected layout, plan and arena of one layout and rank, got "
                f"{sorted(digest[:12] for digest in digests)} and an arena of rank {self.arena.rank}",
                code="arena-layout",
            )

    def shard_key(self, array: int, shard: int) -> str:
        """Key of a shard. `array` is the array's position in the layout."""
        return array_keys.shard_key(self.prefix, self.layout, array, shard)

    def metadata_key(self, array: int) -> str:
        """Key of an array's zarr.json."""
        return array_keys.metadata_key(self.prefix, self.layout, array)

    def go_on(self) -> None:
        """Raises Conflict when the write is cancelled."""
        if self.cancelled():
            raise Conflict(f"rank {self.plan.rank}: its save was cancelled", code="save-cancelled")

    def sequence(self) -> int:
        """The sequence of the snapshot that is written. Raises NotFound when there is none and none is followed."""
        return self.arena.snapshot(self.generation).sequence if self.following is None else self.following

    def follower(self, sequence: int) -> Follower:
        """A Follower of the snapshot's bytes; its waits end when the write is cancelled."""
        return Follower(self.arena, self.generation, sequence, cancelled=self.cancelled)

    def receipt(self, snapshot: Snapshot, crcs: Sequence[int]) -> Receipt:
        """The receipt for a snapshot that has been written. `crcs`: of every span, in plan order; the arena keeps them.

        Raises Conflict when the snapshot was replaced meanwhile.
        """
        self.arena.record_crcs(self.generation, snapshot.sequence, crcs)
        data = self.arena.filling(self.generation)
        return Receipt(
            rank=self.plan.rank,
            attempt=self.attempt,
            step=snapshot.step,
            write_id=snapshot.write_id,
            layout_digest=self.layout.digest,
            spans=tuple(
                WrittenSpan(span.array, span.chunk, span.offset, span.length, crc, is_zero(payload_of(data, span), crc))
                for span, crc in zip(self.plan.spans, crcs, strict=True)
                if span.is_owned
            ),
            freshness=self._freshness(crcs),
        )

    def _freshness(self, crcs: Sequence[int]) -> Freshness | msgspec.UnsetType:
        if self.updated_step is None:
            return msgspec.UNSET
        return Freshness(
            updated_step=self.updated_step,
            held_crc=held_crc(self.layout, self.plan.spans, crcs, self.frozen),
            frozen=tuple(sorted(self.frozen)),
        )


def payload_of(data: memoryview, span: Span) -> memoryview:
    """A span's bytes in the arena's data."""
    return data[span.arena_offset : span.arena_offset + span.length]
