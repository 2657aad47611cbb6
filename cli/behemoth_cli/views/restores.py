"""What restores of a save take from the store, on one mesh or several: lines of a page, a table, documents.

`behemoth.checkpoint.forecast` counts. Neighbour: `views.forecast`, the save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Mesh
from behemoth_cli.out.table import Column, Listing, Section
from behemoth_cli.views.figures import ALL_AXES, axes_text, size

if TYPE_CHECKING:
    from behemoth.checkpoint.forecast import RestoreForecast

FIGURES = ("over_read", "over_read_alone", "over_read_worst", "over_read_fleet_alone", "restore_kept_bytes")
_HEADS = ("mesh", "ranks", "over-read", "alone", "of a rank", "worst", "kept on a node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """On which mesh, and what it costs."""

    mesh: Mesh
    found: RestoreForecast


def restore_pairs(restore: Restore, *, reads_shared: bool) -> tuple[tuple[str, str], ...]:
    """Of a restore that is the only one."""
    mesh, read, kept_bytes = restore.mesh, restore.found.over_read, restore.found.kept_bytes
    way = "this run shares reads" if reads_shared else "this run's ranks do"
    kept = f"{size(kept_bytes)} of memory on a node at most, beside staging, until scales are known"
    return (
        ("restore on", f"{axes_text(mesh, DENSE_AXES)}; experts {axes_text(mesh, EXPERT_AXES)}"),
        ("  over-read", f"{read.once:.4f} x, {read.fleet_alone:.2f} x if each rank reads for itself; {way}"),
        ("  of a rank", f"{read.alone:.2f} x then, {read.worst_alone:.2f} x at most"),
        *((("  kept", kept),) if kept_bytes else ()),
    )


def restores_section(restores: Sequence[Restore], *, reads_shared: bool) -> Section:
    """Of several, one row each."""
    once, alone = (", as this run does", "") if reads_shared else ("", ", as this run does")
    return Section(
        title="Restores of it",
        listing=Listing(
            kind="RestoreList",
            columns=tuple(Column(name=head, align="left" if head == "mesh" else "right") for head in _HEADS),
            rows=tuple(_row(one) for one in restores),
        ),
        lines=(
            f"over-read: bytes from the store / bytes needed, when the fleet reads each chunk once{once}",
            f"alone: the same, when each rank reads for itself{alone}",
            "of a rank, worst: bytes that one then reads / holds, on average and at most",
        ),
    )


def restore_figures(restore: Restore) -> dict[str, object]:
    """By the names in `FIGURES`."""
    read = restore.found.over_read
    values = (read.once, read.alone, read.worst_alone, read.fleet_alone, restore.found.kept_bytes)
    return dict(zip(FIGURES, values, strict=True))


def restore_documents(restores: Sequence[Restore]) -> list[dict[str, object]]:
    """One object each, with its mesh."""
    return [{"mesh": {axis: one.mesh.size(axis) for axis in ALL_AXES}, **restore_figures(one)} for one in restores]


def _row(restore: Restore) -> tuple[str, ...]:
    mesh, read = restore.mesh, restore.found.over_read
    used = (f"{axis}={mesh.size(axis)}" for axis in ALL_AXES if mesh.size(axis) > 1)
    return (
        ",".join(used) or "tp=1",  # as --restore-mesh takes it
        str(mesh.num_ranks),
        f"{read.once:.4f} x",
        *(f"{ratio:.2f} x" for ratio in (read.fleet_alone, read.alone, read.worst_alone)),
        size(restore.found.kept_bytes),
    )
