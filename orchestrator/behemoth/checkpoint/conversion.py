"""How a restore turns the arrays of a checkpoint into other arrays: conversions as values, from a program or a recipe.

Nothing is converted, left out or left unread unless a value here says so. Values only; they travel from the program to
the store process. Neighbours: `matching` holds them against a checkpoint, `reshard` plans, `changes` computes,
`recipe_change` derives them from two recipes.
"""

from __future__ import annotations

import operator
from typing import Annotated, TypeAlias

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_msgpack, told
from behemoth.base.errors import Corrupt, Invalid

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Names = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=1 << 20)]
_Sizes = tuple[Annotated[int, msgspec.Meta(ge=1)], ...]


class _Value(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    pass


class Cast(_Value, frozen=True, kw_only=True):
    """The saved array's values, the nearest of the wanted floating type; of any type where that stays as it is.

    With `begin` a part of it: that which begins at this index and has the wanted shape (experts 3 to 5 of a stack).
    """

    array: _Name
    begin: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()


class ScaledDown(_Value, frozen=True, kw_only=True):
    """float8 of value / scale; a scale spans a block of so many elements per dim (a larger one spans the whole dim).

    `scales` names a saved array of them, of shape ceil(size / block) per dim; without it they are computed: the largest
    magnitude of the block / the largest of the wanted type.
    """

    array: _Name
    block: _Sizes
    scales: _Name | None = None


class ScalesOf(_Value, frozen=True, kw_only=True):
    """The scales that `ScaledDown` to `dtype` computes for the same array and block, float32."""

    array: _Name
    block: _Sizes
    dtype: str = "float8_e4m3fn"


class ScaledUp(_Value, frozen=True, kw_only=True):
    """Saved float8 value * saved scale, computed in float32, the nearest of the wanted type."""

    array: _Name
    scales: _Name
    block: _Sizes


class Joined(_Value, frozen=True, kw_only=True):
    """float32 from its high 16 bits (bfloat16) and its low 16 bits (uint16), each a saved array."""

    high: _Name
    low: _Name


class HighBits(_Value, frozen=True, kw_only=True):
    """The high 16 bits of the values as float32: bfloat16, cut off and not rounded."""

    array: _Name


class LowBits(_Value, frozen=True, kw_only=True):
    """The low 16 bits of the values as float32: uint16, what `HighBits` cuts off."""

    array: _Name


Conversion: TypeAlias = Cast | ScaledDown | ScalesOf | ScaledUp | Joined | HighBits | LowBits


class Intake(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a checkpoint of other arrays comes into a layout. `convert` names arrays of the layout; the rest are shell
    patterns of names.

    `only`: everything else is left out, on both sides. `extra`: arrays of the checkpoint that are not read. `missing`:
    arrays of the layout that the checkpoint lacks. All of it is done or refused, whatever arrays the checkpoint has.
    """

    convert: dict[_Name, Conversion] = {}
    only: _Names = ()
    extra: _Names = ()
    missing: _Names = ()

    def require_valid(self) -> None:
        """Raises Invalid for a field that is not of its declared type or range, such as an index below 0: a program
        fills these values in, and constructors do not check."""
        for name, conversion in self.convert.items():
            _require_valid(name, conversion)

    def encode(self) -> bytes:
        """As msgpack, for `decode`. Integers may be numpy's."""
        return msgspec.msgpack.encode(self, enc_hook=operator.index)

    @staticmethod
    def decode(data: bytes) -> Intake:
        """Raises Corrupt for what is none."""
        try:
            return decode_msgpack(data, Intake)
        except UNDECODABLE as error:
            raise Corrupt(f"intake: expected a msgpack document, got: {told(error)}", code="intake-rubbish") from error


AS_SAVED = Intake()


def _require_valid(name: str, conversion: Conversion) -> None:
    try:
        decode_msgpack(msgspec.msgpack.encode(conversion, enc_hook=operator.index), Conversion)
    except (msgspec.MsgspecError, TypeError) as error:
        kind = type(conversion).__name__
        message = f"array {name!r} by {kind}: expected a conversion as documented, got another: {told(error)}"
        raise Invalid(message, code="conversion") from error


def value_names(conversion: Conversion) -> tuple[str, ...]:
    """The arrays of the checkpoint whose values it takes."""
    return (conversion.high, conversion.low) if isinstance(conversion, Joined) else (conversion.array,)


def saved_names(conversion: Conversion) -> tuple[str, ...]:
    """The arrays of the checkpoint that it reads: values and scales."""
    match conversion:
        case ScaledDown(scales=str(scales)) | ScaledUp(scales=scales):
            return *value_names(conversion), scales
        case _:
            return value_names(conversion)


def num_blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """How many scales there are, per dim."""
    return tuple(-(-size // per_scale) for size, per_scale in zip(shape, block, strict=True))
