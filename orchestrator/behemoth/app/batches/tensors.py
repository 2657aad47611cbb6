"""Which tensors an export or an import takes, and how it changes them: as data, and applied to tensors.

The same data give the same tensors in the process of the command and on a worker. Neighbours: `jobs`, which carries the
data, and `checkpoint.interop`, which has the maps and casts.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from behemoth.checkpoint.interop.casts import converted, unscaled
from behemoth.checkpoint.interop.cells import require_scaling
from behemoth.checkpoint.interop.map_file import decode_map
from behemoth.checkpoint.interop.rules import NameMap
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.views import Sliced
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.checkpoint.row_ranges import RowRange, ranges_of


class MapDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A name map as it was written; `sizes` override its own, `source` begins error messages."""

    data: bytes
    source: str
    sizes: dict[str, int]

    def names(self) -> NameMap:
        """Raises Invalid."""
        return decode_map(self.data, source=self.source, sizes=self.sizes)


class TensorChange(msgspec.Struct, frozen=True, kw_only=True):
    """Which tensors are taken (shell patterns; all without any), of which of them some rows, under which names, in
    which precision ("": as they are)."""

    patterns: tuple[str, ...] = ()
    rows: tuple[RowRange, ...] = ()
    names: MapDocument | None = None
    precision: str = ""
    scaling: str = "tensor"
    """How float8 is scaled: one of `cells.SCALINGS`."""


def outward(tensors: Mapping[str, Tensor], change: TensorChange) -> dict[str, Tensor]:
    """What an export writes. Raises Invalid as maps and casts do."""
    names = None if change.names is None else change.names.names()
    made = _taken(tensors, change)
    if names is not None:
        made = names.apply(made)
    if change.precision:
        made = converted(
            made,
            change.precision,
            is_unscaled=names.is_unscaled if names else lambda _: False,
            scaling=require_scaling(change.scaling),
        )
    return made


def inward(tensors: Mapping[str, Tensor], change: TensorChange) -> dict[str, Tensor]:
    """What an import writes: the map is applied backwards. Raises Invalid as maps and casts do."""
    made = _taken(tensors, change)
    if change.precision:
        made = unscaled(made, change.precision)
    if change.names is not None:
        made = change.names.names().inverse().apply(made)
    return made


def _taken(tensors: Mapping[str, Tensor], change: TensorChange) -> dict[str, Tensor]:
    wanted = NamePatterns(change.patterns)
    made = {name: tensor for name, tensor in tensors.items() if not change.patterns or wanted.has(name)}
    for name, (start, stop) in ranges_of(change.rows, {name: tensor.shape for name, tensor in made.items()}).items():
        made[name] = Sliced(inner=made[name], dim=0, start=start, stop=stop)
    return made
