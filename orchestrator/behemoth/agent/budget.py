"""The bounds of a node's staging memory and of its own disk: refused before any of either is taken, with the numbers.

Neighbours: `storewire.Budget`, which says what the node holds, and `preparing`, which asks first.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.agent.storewire import Budget
from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.base.units import format_size
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.snapshot_format import NUM_FILES, file_bytes

OVER_BUDGET = "staging-budget"
OVER_DISK_BUDGET = "disk-budget"


def require_budget(layout: Layout, budget: Budget) -> None:
    """Raises Invalid when what this node's ranks stage and what it holds for others is more than it may be."""
    own, copies = _size_bytes(layout, budget.own), _size_bytes(layout, budget.copies)
    if own + copies <= budget.limit_bytes:
        return
    limit, got = format_size(budget.limit_bytes), format_size(own + copies)
    raise Invalid(
        f"staging memory: expected at most {limit} on a node, got {got}: {format_size(own)} for {len(budget.own)} "
        f"ranks and {format_size(copies)} for copies of {len(budget.copies)}",
        hint="raise spec.checkpoint.staging_budget, or lower peer_copies, or save less",
        code=OVER_BUDGET,
    )


def require_disk_budget(layout: Layout, ranks: Sequence[Rank], limit_bytes: int) -> None:
    """Raises Invalid when the files of this node's ranks on its own disk are more than they may be."""
    got_bytes = sum(NUM_FILES * file_bytes(plan_rank(layout, rank)) for rank in ranks)
    if got_bytes > limit_bytes:
        raise Invalid(
            f"own disk: expected at most {format_size(limit_bytes)} on a node, got {format_size(got_bytes)} for "
            f"{NUM_FILES} files of each of {len(ranks)} ranks",
            hint="raise spec.checkpoint.local_disk.budget, or leave local_disk out, or save less",
            code=OVER_DISK_BUDGET,
        )


def _size_bytes(layout: Layout, ranks: Sequence[Rank]) -> int:
    return sum(Arena.size_bytes(plan_rank(layout, rank)) for rank in ranks)
