"""The training recipe: what is saved for each parameter, and how it lies over the replicas. Values only.

A program declares its arrays itself when it runs; the recipe says beforehand what they will be, so that a checkpoint
can be planned without it. `behemoth.checkpoint.model_layout` makes a layout of inventory, recipe and mesh.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from behemoth.base.errors import Invalid
from behemoth.spec.field import About, Choice, Integer, fields_of, require_ranges

Weights = Literal["none", "float32", "bfloat16", "float16", "float8_e4m3fn"]
Master = Literal["none", "float32", "split"]
Moment = Literal["none", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
Shares = Literal["flat", "rows", "whole"]

FLOAT8 = "float8_e4m3fn"
SCALE_BLOCK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is saved for each parameter. The defaults are Megatron's distributed optimizer with AdamW, 12 bytes:
    a float32 master from which weights are made again, and two float32 moments, flat over the replicas of a block."""

    weights: Annotated[
        Weights,
        About(
            doc="Element type of the weights; none where they are made again from the master. With float8_e4m3fn, "
            "matrices have it and a float32 scale per block, vectors stay bfloat16.",
            kind=Choice(names=get_args(Weights)),
        ),
    ] = "none"
    scale_block: Annotated[
        int,
        About(
            doc="With float8_e4m3fn weights: rows and columns of a block that shares one scale. The default is that of "
            "DeepSeek-V3's weights.",
            kind=Integer(minimum=1, maximum=1 << 30),
        ),
    ] = SCALE_BLOCK
    master: Annotated[
        Master,
        About(
            doc="The optimizer's own copy of the weights. split: its low 16 bits only, beside bfloat16 weights, which "
            "are the high ones.",
            kind=Choice(names=get_args(Master)),
        ),
    ] = "float32"
    exp_avg: Annotated[
        Moment,
        About(
            doc="Element type of the first moment; also of the momentum where there is one moment only.",
            kind=Choice(names=get_args(Moment)),
        ),
    ] = "float32"
    exp_avg_sq: Annotated[
        Moment,
        About(
            doc="Element type of the second moment.",
            kind=Choice(names=get_args(Moment)),
        ),
    ] = "float32"
    shares: Annotated[
        Shares,
        About(
            doc="How the replicas of a block share it. flat: ranges of elements of master and moments (Megatron's "
            "distributed optimizer), weights whole on each; rows: rows of weights, master and moments (FSDP2), of "
            "experts those of dim 1 where ep x edp is more than their number; whole: each replica holds all.",
            kind=Choice(names=get_args(Shares)),
        ),
    ] = "flat"

    def __post_init__(self) -> None:
        require_ranges(self, name="recipe")
        if {self.weights, self.master} == {"none"}:
            raise Invalid(
                "recipe.master: expected weights or a master, got neither",
                hint="a checkpoint without them has nothing to train on with",
                code="recipe-empty",
            )
        if self.master == "split" and self.weights != "bfloat16":
            raise Invalid(
                f"recipe.master: expected split beside bfloat16 weights, got it beside {self.weights}",
                hint="set recipe.weights to bfloat16",
                code="recipe-split",
            )
        if self.scale_block != SCALE_BLOCK and self.weights != FLOAT8:
            raise Invalid(
                f"recipe.scale_block: expected it with {FLOAT8} weights, got {self.scale_block} with {self.weights}",
                hint="leave it out: nothing has scales",
                code="option-without-effect",
            )


DEFAULT = Recipe()


def parse_recipe(text: str, base: Recipe, *, name: str = "recipe") -> Recipe:
    """Read fields such as `weights=bfloat16,master=none`; those that are left out are those of `base`.

    `name` opens the message of an error. Raises Invalid.
    """
    known = {field.name: field for field in fields_of(Recipe)}
    changes: dict[str, str | int] = {}
    for part in text.split(","):
        field, _, value = part.strip().partition("=")
        is_number = field in known and isinstance(known[field].kind, Integer)
        is_value = value.isascii() and value.isdigit() and len(value) <= 10 if is_number else bool(value)
        if field not in known or field in changes or not is_value:
            raise Invalid(
                f"{name}: expected each field once with its value, got {part.strip()!r:.80}",
                hint=f"write it as weights=bfloat16,master=none; fields: {', '.join(known)}",
                code="recipe-text",
            )
        changes[field] = int(value) if is_number else value
    if changes.get("weights", base.weights) != FLOAT8:
        changes.setdefault("scale_block", SCALE_BLOCK)  # that of the base says nothing then
    try:
        return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # ranges are checked
    except Invalid as error:
        raise Invalid(f"{name}: {error.message}", hint=error.hint, code=error.code) from error
