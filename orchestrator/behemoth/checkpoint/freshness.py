"""Whether a rank saved the state of its step or an older one as new (NeMo-RL #3312, Megatron-LM #4378).

Its bytes alone cannot tell: a program that gathers gradients over many steps is healthy between two updates. So a rank
also tells the last step in which its program announced an update, and only a rank that announced one since the last
commit must have moved. A step, not a count: it means the same after a restart, and the last commit's own step is all
that it is compared with. Pure. Neighbours: `rank_write`, which knows all that a rank holds, and `proof`, which asks.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import msgspec
import numpy as np

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.commit_record import ArraySummary, CommitRecord
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import Span, plan_rank
from behemoth.checkpoint.receipt import Freshness, Receipt

SMALL_STATE = "state/"
"""Arrays below it (cursors, random number states) move by themselves and say nothing about the model's freshness."""

NAMED_ARRAYS = 3
"""So many are named by a refusal; a giant model has over a thousand."""

_NO_PRINT = "0" * 8
_HINT = (
    "the program saves a stale copy, or arrays that it no longer changes; where that is meant, declare them with "
    "State.array(.., frozen=True), and call run.fence(updates=False) in a step that changes nothing"
)

_log = logging.getLogger(__name__)


def held_crc(layout: Layout, spans: Iterable[Span], crcs: Iterable[int], frozen: Collection[int]) -> int:
    """CRC-32C over all spans that a rank holds of arrays that are meant to move, whoever writes them; 0 without any.

    All, because a rank may write nothing but constants by chance (replicated bytes go to the least loaded holder), and
    an expert without tokens stays as it is while the rest of its rank moves.
    """
    movable = _movable(layout, frozen)
    rows = [(*span[:4], crc) for span, crc in zip(spans, crcs, strict=True) if span.array in movable]
    return crc32c(np.array(sorted(rows), dtype="<i8").tobytes()) if rows else 0


def held_prints(layout: Layout, receipts: Sequence[Receipt]) -> str | msgspec.UnsetType:
    """Eight hex digits of `held_crc` for each rank, as a commit keeps them; zeros for a rank that told nothing.

    Raises Invalid when ranks disagree about what is frozen: their prints would not be of the same arrays.
    """
    told_of = {receipt.rank: told for receipt in receipts if (told := _told(receipt)) is not None}
    if not told_of:
        return msgspec.UNSET
    prints = [_NO_PRINT] * layout.mesh.num_ranks
    first, frozen = next((rank, told.frozen) for rank, told in told_of.items())
    if max(frozen, default=-1) >= len(layout.arrays):
        raise Invalid(f"rank {first}: expected frozen arrays below {len(layout.arrays)}, got {max(frozen)}")
    for rank, told in told_of.items():
        if told.frozen != frozen:
            names = [layout.arrays[at].name for at in sorted(set(told.frozen) ^ set(frozen)) if at < len(layout.arrays)]
            raise Invalid(
                f"rank {rank}: expected the same arrays frozen as on its peers, got others: {names[:8]}",
                hint="every rank gives the same frozen= for the same array",
                code="receipt-frozen",
            )
        prints[rank] = f"{told.held_crc:08x}"
    return "".join(prints)


def check_fresh(
    layout: Layout, arrays: Sequence[ArraySummary], receipts: Sequence[Receipt], previous: CommitRecord
) -> None:
    """Refuse a rank of which every movable array equals `previous` although it announced an update since.

    Raises Corrupt, naming the rank and the first of its arrays, or the checkpoint's when nothing in it moved; unchanged
    single arrays are logged.
    """
    if previous.layout_digest != layout.digest:
        return
    updated = {receipt.rank: told for receipt in receipts if (told := _told(receipt)) is not None}
    updated = {rank: told for rank, told in updated.items() if told.updated_step > previous.step}
    if not updated:
        return
    stale = [rank for rank in sorted(updated) if _is_unchanged(rank, updated[rank], previous)]
    movable = _movable(layout, next(iter(updated.values())).frozen)
    still = [arrays[at].name for at in sorted(movable) if arrays[at].content_crc == previous.arrays[at].content_crc]
    if stale:
        what = (
            f"checkpoint: all {_listed(still)} equal those of step {previous.step}, although rank {stale[0]}"
            if len(still) == len(movable)
            else f"rank {stale[0]}: all that it holds, {_listed(_held(layout, stale[0], movable))}, equals step "
            f"{previous.step}, although it"
        )
        raise Corrupt(
            f"{what} announced an update in step {updated[stale[0]].updated_step}",
            hint=_HINT,
            code="checkpoint-stale" if len(still) == len(movable) else "rank-stale",
        )
    if still:
        _log.warning("%d arrays did not change since step %d: %s", len(still), previous.step, still[:8])


def _is_unchanged(rank: int, told: Freshness, previous: CommitRecord) -> bool:
    now = f"{told.held_crc:08x}"
    then = previous.held_prints if isinstance(previous.held_prints, str) else ""
    return now != _NO_PRINT and then[8 * rank : 8 * rank + 8] == now


def _held(layout: Layout, rank: int, movable: Collection[int]) -> list[str]:
    """The movable arrays of which a rank holds something."""
    held = {piece.array for piece in plan_rank(layout, Rank(rank)).pieces}
    return [layout.arrays[at].name for at in sorted(held.intersection(movable))]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMED_ARRAYS]))
    more = ", .." if len(names) > NAMED_ARRAYS else ""
    return f"{len(names)} array{'' if len(names) == 1 else 's'} ({shown}{more})"


def _told(receipt: Receipt) -> Freshness | None:
    return None if isinstance(receipt.freshness, msgspec.UnsetType) else receipt.freshness


def _movable(layout: Layout, frozen: Collection[int]) -> set[int]:
    names = enumerate(array.name for array in layout.arrays)
    return {position for position, name in names if position not in frozen and not name.startswith(SMALL_STATE)}
