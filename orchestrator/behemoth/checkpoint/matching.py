"""Which array of a checkpoint is which of a layout, whatever mesh either lies on.

An array is the same when name, shape and dtype are; how it is shared says nothing about what it is. What only one side
has, or has in another way, is an error unless an `Intake` says what to do: a state that came back in part, or in
another precision, in silence, would train on. Pure. Neighbours: `layout`, `conversion` (what may be said), `fitting`
(whether a conversion fits), `reshard`, which plans with the answer, and `reader`, which asks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.conversion import AS_SAVED, Conversion, Intake, saved_names
from behemoth.checkpoint.fitting import check_conversion
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.checkpoint.records import RANKS_ARRAY

Origin: TypeAlias = int | Conversion | None
"""Where a wanted array comes from: the position of the same array in the checkpoint, a conversion, or None
(nowhere)."""


def origins(saved: Layout, layout: Layout, *, step: Step, intake: Intake = AS_SAVED) -> tuple[Origin, ...]:
    """For each array of `layout` where it comes from. The ranks' own records come from nowhere when the number of ranks
    differs. `step`: of the checkpoint, for the messages.

    Raises Invalid naming missing, unknown and changed arrays, patterns that name nothing, and conversions that do not
    fit.
    """
    asked = _Asked(intake)
    _check_intake(saved, layout, step, asked)
    found = tuple(_origin(saved, array, asked) for array in layout.arrays)
    _check_same_model(saved, layout, step, asked, found)
    return found


def has_own_arrays(saved: Layout, layout: Layout) -> bool:
    """Whether a checkpoint has the arrays of `layout`, no more and no less, on whatever mesh."""
    return saved.positions.keys() == layout.positions.keys() and all(
        _is_same(old, new) or _is_of_other_ranks(old, new) for old, new in zip(saved.arrays, layout.arrays, strict=True)
    )


def left_out(layout: Layout, found: Sequence[Origin]) -> tuple[int, ...]:
    """The arrays, counted in the layout's order, for which there is nothing to give. `found` is what `origins` said."""
    return tuple(at for at, origin in enumerate(found) if origin is None and layout.arrays[at].name != RANKS_ARRAY)


class _Asked:
    """An intake whose patterns are ready to be compared with thousands of names."""

    def __init__(self, intake: Intake) -> None:
        self.convert = intake.convert
        self.only, self.extra, self.missing = map(NamePatterns, (intake.only, intake.extra, intake.missing))
        self._takes_all = not intake.only

    def takes(self, name: str) -> bool:
        """Whether the array is not left out on either side."""
        return self._takes_all or self.only.has(name)


def _origin(saved: Layout, array: ArraySpec, asked: _Asked) -> Origin:
    if array.name in asked.convert:
        return asked.convert[array.name]
    position = saved.positions.get(array.name)
    if position is None or not asked.takes(array.name):
        return None
    return None if _is_of_other_ranks(saved.arrays[position], array) else position


def _check_same_model(saved: Layout, layout: Layout, step: Step, asked: _Asked, found: Sequence[Origin]) -> None:
    read = {name for conversion in asked.convert.values() for name in saved_names(conversion)}
    changed = [
        (saved.arrays[origin], array)
        for origin, array in zip(found, layout.arrays, strict=True)
        if isinstance(origin, int) and not _is_same(saved.arrays[origin], array)
    ]
    missing = [
        array.name
        for origin, array in zip(found, layout.arrays, strict=True)
        if origin is None
        and array.name not in saved.positions
        and asked.takes(array.name)
        and not asked.missing.has(array.name)
    ]
    unknown = [
        name
        for name in saved.positions
        if name not in layout.positions and name not in read and asked.takes(name) and not asked.extra.has(name)
    ]
    if missing or unknown or changed:
        raise Invalid(
            f"checkpoint of step {step}: it is of another model: {len(missing)} arrays are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}, {len(changed)} differ {_changes(changed[:3])}".rstrip(),
            hint="restore it with the program that saved it, say what is extra, missing or to be converted, or start "
            "from scratch in another directory",
            code="model-mismatch",
        )


def _check_intake(saved: Layout, layout: Layout, step: Step, asked: _Asked) -> None:
    alone = saved.positions.keys() - layout.positions.keys()
    lacking = layout.positions.keys() - saved.positions.keys()
    _check_patterns("only", asked.only, saved.positions.keys() | layout.positions.keys(), "either side has", step)
    _check_patterns("extra", asked.extra, alone, "the checkpoint alone has", step)
    _check_patterns("missing", asked.missing, lacking, "the layout alone has", step)
    for name, conversion in asked.convert.items():
        position = layout.positions.get(name)
        if position is None:
            raise Invalid(
                f"checkpoint of step {step}: expected conversions into arrays of the layout, got one into {name!r}",
                code="arrays-listed",
            )
        check_conversion(saved, layout.arrays[position], conversion, step=step)


def _check_patterns(what: str, patterns: NamePatterns, names: Collection[str], having: str, step: Step) -> None:
    """A misspelt name must be found."""
    wrong = sorted(patterns.unused(names))
    if wrong:
        raise Invalid(
            f"checkpoint of step {step}: expected {what} to name arrays that {having}, got {wrong[:3]}",
            hint="names and patterns such as 'optim/*' are compared with whole names of arrays",
            code="arrays-listed",
        )


def _is_same(old: ArraySpec, new: ArraySpec) -> bool:
    return (old.dtype, old.shape) == (new.dtype, new.shape)


def _is_of_other_ranks(old: ArraySpec, new: ArraySpec) -> bool:
    """A rank's own record (its random states) means nothing to ranks of another world."""
    is_resized = old.shape[:1] != new.shape[:1] and old.shape[1:] == new.shape[1:]
    return new.name == RANKS_ARRAY and old.dtype == new.dtype and is_resized


def _changes(changed: Sequence[tuple[ArraySpec, ArraySpec]]) -> str:
    return "; ".join(_change(old, new) for old, new in changed)


def _change(old: ArraySpec, new: ArraySpec) -> str:
    return f"{new.name!r}: saved {old.dtype}{list(old.shape)}, this run has {new.dtype}{list(new.shape)}"
