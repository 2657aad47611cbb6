"""What a restore must do so that a state of one recipe becomes that of another: another precision of the weights, a
master of another form or none, other moments.

Everything follows from the two recipes and the model's tensors. What would have to be invented (a master from weights,
moments) is refused unless it is asked for. Pure. Neighbours: `conversion` (the result), `model_layout` (the names),
`behemoth.spec.recipe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.checkpoint.conversion import (
    Cast,
    Conversion,
    HighBits,
    Intake,
    Joined,
    LowBits,
    ScaledDown,
    ScaledUp,
    ScalesOf,
)
from behemoth.checkpoint.model_layout import OPTIMIZER, SCALES, WEIGHTS, scale_block, slot_dtypes, weights_dtype
from behemoth.spec.model import Inventory, Tensor
from behemoth.spec.recipe import Recipe

_FLOAT8 = "float8_e4m3fn"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def recipe_change(
    inventory: Inventory, saved: Recipe, wanted: Recipe, *, make_master: bool = False, new_moments: bool = False
) -> Intake:
    """For a checkpoint of `saved` and a state of `wanted`, both of the names that `model_layout` gives.

    Values come from the most precise copy that was saved, except weights of the very type that is wanted.
    `make_master`: a master that was not saved is made of the weights. `new_moments`: moments that were not saved stay
    as the program has them. Raises Invalid when one is needed and not asked for, and for a change that would take two
    conversions in a row.
    """
    _check_invented(saved, wanted, make_master=make_master, new_moments=new_moments)
    before, after = slot_dtypes(saved), slot_dtypes(wanted)
    convert: dict[str, Conversion] = {}
    for tensor in inventory.parameters:
        convert |= _Tensor(tensor=tensor, saved=saved, wanted=wanted).conversions()
        for slot in _MOMENTS:
            if "none" not in (before[slot], after[slot]) and before[slot] != after[slot]:
                convert[_slot(slot, tensor)] = Cast(array=_slot(slot, tensor))
    return Intake(
        convert=convert,
        extra=tuple(f"{part}/*" for part in _parts(saved, inventory) if part not in _parts(wanted, inventory)),
        missing=tuple(f"{OPTIMIZER}/{slot}/*" for slot in _MOMENTS if before[slot] == "none" and after[slot] != "none"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """Weights and master of one tensor."""

    tensor: Tensor
    saved: Recipe
    wanted: Recipe

    def conversions(self) -> Mapping[str, Conversion]:
        return dict(self._conversions())

    def _conversions(self) -> Iterator[tuple[str, Conversion]]:
        weights, master = f"{WEIGHTS}/{self.tensor.name}", _slot("master", self.tensor)
        is_split = self.wanted.master == "split"
        if is_split and self.saved.master != "split":
            yield weights, HighBits(array=self._values("halves of float32"))
            yield master, LowBits(array=self._values("halves of float32"))
            return
        if self.wanted.weights != "none" and not self._has_weights():
            yield weights, self._weights()
            if weights_dtype(self.tensor, self.wanted) == _FLOAT8:
                yield f"{SCALES}/{self.tensor.name}", ScalesOf(array=self._values("float8"), block=self._block())
        if self.wanted.master == "float32" and self.saved.master != "float32":
            yield master, self._widened()

    def _has_weights(self) -> bool:
        """Whether the weights were saved as they are wanted."""
        if self.saved.weights == "none":
            return False
        dtypes = weights_dtype(self.tensor, self.saved), weights_dtype(self.tensor, self.wanted)
        has_blocks = dtypes[0] != _FLOAT8 or self.saved.scale_block == self.wanted.scale_block
        return dtypes[0] == dtypes[1] and has_blocks

    def _weights(self) -> Conversion:
        dtype = weights_dtype(self.tensor, self.wanted)
        if dtype == _FLOAT8:
            return ScaledDown(array=self._values("float8"), block=self._block())
        return self._widened() if dtype == "float32" or self._is_scaled() else Cast(array=self._values(dtype))

    def _widened(self) -> Conversion:
        """The most precise values, in any type at least as wide."""
        if self.saved.master == "split":
            return Joined(high=f"{WEIGHTS}/{self.tensor.name}", low=_slot("master", self.tensor))
        if self._is_scaled():
            return ScaledUp(
                array=f"{WEIGHTS}/{self.tensor.name}",
                scales=f"{SCALES}/{self.tensor.name}",
                block=scale_block(self.tensor, self.saved),
            )
        return Cast(array=self._values("float32"))

    def _values(self, wanted: str) -> str:
        """The saved array that has the most precise values as they are."""
        if self.saved.master == "float32":
            return _slot("master", self.tensor)
        if self.saved.master == "split" or self._is_scaled():
            form = "a split master" if self.saved.master == "split" else "float8 weights with scales"
            raise Invalid(
                f"tensor {self.tensor.name!r}: expected a saved float32 master, or weights without scales, to make "
                f"{wanted} from, got {form}",
                hint="do it in two steps: to master=float32 first, and from what is saved then to this recipe",
                code="recipe-change",
            )
        return f"{WEIGHTS}/{self.tensor.name}"

    def _is_scaled(self) -> bool:
        """Whether float8 weights with scales are all that was saved."""
        is_float8 = self.saved.weights == _FLOAT8 and weights_dtype(self.tensor, self.saved) == _FLOAT8
        return is_float8 and self.saved.master == "none"

    def _block(self) -> tuple[int, ...]:
        return scale_block(self.tensor, self.wanted)


def _check_invented(saved: Recipe, wanted: Recipe, *, make_master: bool, new_moments: bool) -> None:
    if wanted.master != "none" and saved.master == "none" and not make_master:
        raise Invalid(
            f"arrays {OPTIMIZER}/master/*: expected them to be saved, for master={wanted.master}, got a recipe without",
            hint="master=none goes without; a restore with recipe_change(make_master=True) makes them of the weights",
            code="recipe-change",
        )
    for slot in _MOMENTS:
        dtype = slot_dtypes(wanted)[slot]
        if slot_dtypes(saved)[slot] == "none" and dtype != "none" and not new_moments:
            raise Invalid(
                f"arrays {OPTIMIZER}/{slot}/*: expected them to be saved, for {slot}={dtype}, got a recipe without",
                hint=f"{slot}=none goes without; a restore with recipe_change(new_moments=True) keeps those that the "
                "program begins with",
                code="recipe-change",
            )


def _parts(recipe: Recipe, inventory: Inventory) -> list[str]:
    """What the names of a recipe's arrays begin with."""
    parts = [f"{OPTIMIZER}/{slot}" for slot, dtype in slot_dtypes(recipe).items() if dtype != "none"]
    if recipe.weights != "none":
        parts.append(WEIGHTS)
        if any(weights_dtype(tensor, recipe) == _FLOAT8 for tensor in inventory.parameters):
            parts.append(SCALES)
    return parts


def _slot(slot: str, tensor: Tensor) -> str:
    return f"{OPTIMIZER}/{slot}/{tensor.name}"
