"""What changed between two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, Page, Section
from behemoth_cli.views.figures import percent

if TYPE_CHECKING:
    from behemoth.checkpoint.commit_record import CommitRecord
    from behemoth.checkpoint.diff import ArrayDiff
    from behemoth.checkpoint.layout import ArraySpec


def diff_page(found: Sequence[ArrayDiff], first: CommitRecord, second: CommitRecord, *, is_full: bool) -> Page:
    """A line in all, then one row for each array that differs; with `is_full` for every array."""
    num_same = sum(one.how == "same" for one in found)
    names = f"checkpoint/{first.step} ({first.write_id}) and checkpoint/{second.step} ({second.write_id})"
    verdict = "are the same" if num_same == len(found) else f"differ in {len(found) - num_same} of {len(found)} arrays"
    shown = [one for one in found if is_full or one.how != "same"]
    return Page(
        kind="CheckpointDiff",
        sections=(
            Section(lines=(f"{names} {verdict}",)),
            Section(listing=_listing(shown)),
        ),
        body={
            "isSame": num_same == len(found),
            "first": {"step": first.step, "writeId": first.write_id, "run": first.run},
            "second": {"step": second.step, "writeId": second.write_id, "run": second.run},
            "numArrays": len(found),
            "numSame": num_same,
            "arrays": [_item(one) for one in found if one.how != "same"],
        },
    )


def _listing(shown: Sequence[ArrayDiff]) -> Listing:
    return Listing(
        kind="ArrayDiffList",
        columns=(
            Column(name="array"),
            Column(name="how"),
            Column(name="is"),
            Column(name="changed", align="right"),
            Column(name="share", align="right"),
            Column(name="max abs", align="right"),
            Column(name="max rel", align="right"),
            Column(name="l2", align="right"),
            Column(name="nan", align="right"),
        ),
        rows=tuple(_row(one) for one in shown),
    )


def _row(one: ArrayDiff) -> tuple[str, ...]:
    told, spec = one.difference, one.first or one.second
    if told is None or spec is None:
        return (one.name, one.how, _kinds(one), "-", "-", "-", "-", "-", "-")
    return (
        one.name,
        one.how,
        _kinds(one),
        str(told.num_changed),
        percent(told.num_changed, spec.num_elements),
        f"{told.max_abs:.3g}",
        f"{told.max_rel:.3g}",
        f"{told.l2:.3g}",
        f"-{told.num_nan_first} +{told.num_nan_second}" if told.num_nan_first or told.num_nan_second else "0",
    )


def _kinds(one: ArrayDiff) -> str:
    """What the array is; both sides where that differs."""
    kinds = dict.fromkeys(_kind(spec) for spec in (one.first, one.second) if spec is not None)
    return " -> ".join(kinds)


def _kind(spec: ArraySpec) -> str:
    return f"{spec.dtype}[{','.join(str(size) for size in spec.shape)}]"


def _item(one: ArrayDiff) -> dict[str, object]:
    """An array's difference as a document; infinities, which JSON does not have, as texts."""
    told = one.difference
    figures: dict[str, object] = {}
    if told is not None:
        figures = {
            "numChanged": told.num_changed,
            "maxAbs": _number(told.max_abs),
            "maxRel": told.max_rel,
            "l2": _number(told.l2),
            "numNanFirst": told.num_nan_first,
            "numNanSecond": told.num_nan_second,
        }
    return {"name": one.name, "how": one.how, "first": _spec(one.first), "second": _spec(one.second), **figures}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"


def _spec(spec: ArraySpec | None) -> dict[str, object] | None:
    if spec is None:
        return None
    return {"dtype": spec.dtype, "shape": list(spec.shape), "numElements": spec.num_elements}
