"""The parallel layout: which coordinates a rank has on the dense and on the expert axes.

Dense and expert parameters live on two meshes over the same ranks, which share the pipeline axis (Megatron's order,
innermost first: tp, cp, dp, pp and etp, ep, edp, pp). The module knows ranks only; which tensor goes over which axis
is `behemoth.checkpoint.layout`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank

Axis = Literal["tp", "cp", "dp", "pp", "etp", "ep", "edp"]
DENSE_AXES: tuple[Axis, ...] = ("tp", "cp", "dp", "pp")
EXPERT_AXES: tuple[Axis, ...] = ("etp", "ep", "edp", "pp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Sizes of the axes; the product of the dense ones equals that of the expert ones and is the world size.

    An axis that is not used has size 1, which is why every field has that default.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    etp: int = 1
    ep: int = 1
    edp: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise Invalid(f"mesh.{field.name}: expected an integer >= 1, got {size!r}", code="mesh-size")
        dense, expert = self.tp * self.cp * self.dp, self.etp * self.ep * self.edp
        if dense != expert:
            raise Invalid(
                f"mesh: expected tp x cp x dp to equal etp x ep x edp, got {dense} and {expert} ranks per pipeline stage",
                hint="both meshes lie over the same ranks; usually edp = tp x cp x dp / (etp x ep)",
                code="mesh-product",
            )

    @property
    def num_ranks(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    def size(self, axis: Axis) -> int:
        return int(getattr(self, axis))

    def coordinate(self, rank: Rank, axis: Axis) -> int:
        """The rank's place on `axis`, 0 .. size - 1."""
        return rank // self._stride(axis) % self.size(axis)

    def _stride(self, axis: Axis) -> int:
        order = DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES
        stride = 1
        for inner in order[: order.index(axis)]:
            stride *= self.size(inner)
        return stride
