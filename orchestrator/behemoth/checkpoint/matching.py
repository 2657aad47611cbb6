"""Which array of a checkpoint is which of a layout, whatever mesh either lies on.

An array is the same when name, shape and dtype are; how it is shared says nothing about what it is. What only one side
has is an error unless the caller lists it: a state that came back in part, in silence, would train on. Pure.
Neighbours: `layout`, `reshard`, which plans with the answer, and `reader`, which asks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.records import RANKS_ARRAY


def saved_positions(
    saved: Layout, layout: Layout, *, step: Step, unread: Collection[str] = (), unsaved: Collection[str] = ()
) -> tuple[int | None, ...]:
    """For each array of `layout` its position in `saved`; None where the checkpoint has nothing to give.

    `unread` lists the arrays of the checkpoint that `layout` leaves out (the optimizer's, for weights only), `unsaved`
    those of `layout` that the checkpoint lacks; both exactly, so that a misspelt name is found. The ranks' own records
    are nothing to give either when they are of another number of ranks. `step` is for the message.

    Raises Invalid naming missing, unknown and changed arrays.
    """
    _check_listed(saved, layout, step, unread=unread, unsaved=unsaved)
    positions = [saved.positions.get(array.name) for array in layout.arrays]
    pairs = [
        (saved.arrays[position], array)
        for position, array in zip(positions, layout.arrays, strict=True)
        if position is not None
    ]
    changed = [(old, new) for old, new in pairs if not _is_same(old, new) and not _is_of_other_ranks(old, new)]
    missing = [name for name in layout.positions if name not in saved.positions and name not in unsaved]
    unknown = [name for name in saved.positions if name not in layout.positions and name not in unread]
    if missing or unknown or changed:
        raise Invalid(
            f"checkpoint of step {step}: of another model: {len(missing)} arrays are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}, {len(changed)} differ {_changes(changed[:3])}".rstrip(),
            hint="restore it with the program that saved it, or start from scratch in another directory",
            code="model-mismatch",
        )
    other = {new.name for old, new in pairs if not _is_same(old, new)}
    return tuple(
        None if array.name in other else position for position, array in zip(positions, layout.arrays, strict=True)
    )


def _check_listed(
    saved: Layout, layout: Layout, step: Step, *, unread: Collection[str], unsaved: Collection[str]
) -> None:
    for what, names, having, lacking in (
        ("unread", unread, saved, layout),
        ("unsaved", unsaved, layout, saved),
    ):
        wrong = sorted(name for name in names if name not in having.positions or name in lacking.positions)
        if wrong:
            side = "the checkpoint" if having is saved else "the layout"
            raise Invalid(
                f"checkpoint of step {step}: expected {what} arrays that {side} alone has, got {wrong[:3]}",
                hint="list exactly the arrays that only one side has",
                code="arrays-listed",
            )


def _is_same(old: ArraySpec, new: ArraySpec) -> bool:
    return (old.dtype, old.shape) == (new.dtype, new.shape)


def _is_of_other_ranks(old: ArraySpec, new: ArraySpec) -> bool:
    """A rank's own record (its random states) means nothing to ranks of another world."""
    return new.name == RANKS_ARRAY and old.dtype == new.dtype and old.shape[1:] == new.shape[1:]


def _changes(changed: Sequence[tuple[ArraySpec, ArraySpec]]) -> str:
    return "; ".join(_change(old, new) for old, new in changed)


def _change(old: ArraySpec, new: ArraySpec) -> str:
    return f"{new.name!r}: saved {old.dtype}{list(old.shape)}, this run has {new.dtype}{list(new.shape)}"
