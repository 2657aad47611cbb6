"""What the time of a run's ranks was spent on, as a table: of a run as it stands (`status`) and of one that is over
(`summary`). `behemoth.reconcile.ledger` counts."""

from __future__ import annotations

from collections.abc import Iterable

from behemoth_cli.out.table import Column, Listing
from behemoth_cli.views.figures import percent

BUCKETS = ("useful", "checkpoint_stall", "detect", "restart", "restore", "recomputed", "idle")
"""The fields of `Buckets`, as they are shown."""


def spent_listing(spent: Iterable[tuple[str, float]], *, total_s: float) -> Listing:
    """One row for each bucket, or sum of them, and its rank-seconds."""
    return Listing(
        kind="Ledger",
        columns=(
            Column(name="spent on"),
            Column(name="rank-seconds", align="right"),
            Column(name="share", align="right"),
        ),
        rows=tuple((name.replace("_", " "), f"{each_s:.3f}", percent(each_s, total_s)) for name, each_s in spent),
    )
