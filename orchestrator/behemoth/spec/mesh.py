"""The parallel layout: which coordinates a rank has on the dense and on the expert axes.

Dense and expert parameters live on two meshes over the same ranks, which share the pipeline axis (Megatron's order,
innermost first: tp, cp, dp, pp and etp, ep, edp, pp). The module knows ranks only; which tensor goes over which axis
is `behemoth.checkpoint.layout`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.spec.field import About, Integer, misfit
from behemoth.spec.nodes import MAX_NODES, MAX_RANKS_PER_NODE

Axis = Literal["tp", "cp", "dp", "pp", "etp", "ep", "edp"]
DENSE_AXES: tuple[Axis, ...] = ("tp", "cp", "dp", "pp")
EXPERT_AXES: tuple[Axis, ...] = ("etp", "ep", "edp", "pp")
Axes = Axis | tuple[Axis, ...]
"""One axis, or several of one mesh that count as one: ("cp", "dp") are the dp x cp replicas of a dense block. Innermost
first, as in the mesh: the place on them is cp + size(cp) * dp."""
_SIZE = Integer(minimum=1, maximum=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Sizes of the axes; the product of the dense ones equals that of the expert ones and is the world size.

    An axis that is not used has size 1, which is why every field has that default.
    """

    tp: Annotated[
        int, About(doc="Tensor parallel: dense matrices are cut over this many ranks, the innermost ones.", kind=_SIZE)
    ] = 1
    cp: Annotated[int, About(doc="Context parallel: a sequence is cut over this many ranks.", kind=_SIZE)] = 1
    dp: Annotated[int, About(doc="Data parallel: replicas of the dense parameters.", kind=_SIZE)] = 1
    pp: Annotated[int, About(doc="Pipeline parallel: stages, shared by the dense and the expert mesh.", kind=_SIZE)] = 1
    etp: Annotated[
        int, About(doc="Expert tensor parallel: the matrices of one expert are cut over this many ranks.", kind=_SIZE)
    ] = 1
    ep: Annotated[
        int,
        About(
            doc="Expert parallel: experts are spread over this many ranks; it must divide the experts of the model.",
            kind=_SIZE,
        ),
    ] = 1
    edp: Annotated[
        int,
        About(
            doc="Expert data parallel: replicas of the experts; tp x cp x dp where etp, ep and edp are all left out.",
            kind=_SIZE,
        ),
    ] = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise Invalid(f"mesh.{field.name}: expected an integer >= 1, got {size!r}", code="mesh-size")
        dense, expert = self.tp * self.cp * self.dp, self.etp * self.ep * self.edp
        if dense != expert:
            raise Invalid(
                f"mesh: expected tp x cp x dp to equal etp x ep x edp, got {dense} and {expert} ranks per stage",
                hint="both meshes lie over the same ranks; usually edp = tp x cp x dp / (etp x ep)",
                code="mesh-product",
            )

    @property
    def num_ranks(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    def size(self, axes: Axes) -> int:
        return math.prod(int(getattr(self, axis)) for axis in each_axis(axes))

    def coordinate(self, rank: Rank, axes: Axes) -> int:
        """The rank's place on `axes`, 0 .. size - 1."""
        place = 0
        for axis in reversed(each_axis(axes)):
            place = place * self.size(axis) + rank // self._stride(axis) % self.size(axis)
        return place

    def coordinates(self, axis: Axis) -> list[int]:
        """`coordinate` of every rank in turn, for those who ask for tens of thousands."""
        stride, size = self._stride(axis), self.size(axis)
        return [rank // stride % size for rank in range(self.num_ranks)]

    def without_idle(self, axes: Axes) -> Axes:
        """The same places by fewer axes: of several, those of size 1 are left out, and all but the last if all are."""
        used = tuple(axis for axis in each_axis(axes) if self.size(axis) > 1) or each_axis(axes)[-1:]
        return used if len(used) > 1 else used[0]

    def _stride(self, axis: Axis) -> int:
        order = DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES
        stride = 1
        for inner in order[: order.index(axis)]:
            stride *= self.size(inner)
        return stride


def each_axis(axes: Axes) -> tuple[Axis, ...]:
    """One or several, the innermost first."""
    return axes if isinstance(axes, tuple) else (axes,)


def check_axes(axes: Axes, *, name: str) -> None:
    """Raises Invalid for what is neither an axis nor several of one mesh in its order: in another one, the places on
    them would be others."""
    several = each_axis(axes)
    orders = [tuple(axis for axis in mesh if axis in several) for mesh in (DENSE_AXES, EXPERT_AXES)]
    if not several or several not in orders:
        raise Invalid(
            f"{name}: expected an axis, or a tuple of several in the order of the mesh, got {axes!r}",
            hint=f"innermost first: {', '.join(DENSE_AXES)}, or {', '.join(EXPERT_AXES)}; ('cp', 'dp') are the "
            "replicas of a dense block",
            code="array-axes",
        )


def complete_axes(sizes: Mapping[str, object]) -> Mapping[str, object]:
    """Sizes as written in a run file, with `edp` filled in where no expert axis is written: every dense rank then
    holds every expert whole."""
    if any(axis in sizes for axis in ("etp", "ep", "edp")):
        return sizes
    edp = 1
    for axis in ("tp", "cp", "dp"):
        size = sizes.get(axis, 1)
        edp *= size if isinstance(size, int) else 1
    return {**sizes, "edp": edp}


def parse_mesh(text: str, *, name: str = "mesh") -> Mesh:
    """Read sizes of axes such as `tp=4,pp=8,dp=500`; an axis that is left out has the default it has in a run file.

    `name` opens the message of an error. Raises Invalid.
    """
    sizes: dict[str, int] = {}
    axes = [field.name for field in fields(Mesh)]
    for part in text.split(","):
        axis, _, number = part.strip().partition("=")
        is_number = number.isascii() and number.isdigit() and len(number) <= 7
        is_size = is_number and not misfit(_SIZE, int(number))
        if axis not in axes or axis in sizes or not is_size:
            raise Invalid(
                f"{name}: expected each axis once with its size, got {part.strip()!r:.80}",
                hint=f"write it as tp=4,pp=8,dp=500, sizes from 1 to {_SIZE.maximum}; axes: {', '.join(axes)}",
                code="mesh-text",
            )
        sizes[axis] = int(number)
    try:
        mesh = Mesh(**{axis: size for axis, size in complete_axes(sizes).items() if isinstance(size, int)})
    except Invalid as error:
        raise Invalid(f"{name}: {error.message}", hint=error.hint, code=error.code) from error
    if mesh.num_ranks > MAX_NODES * MAX_RANKS_PER_NODE:  # in a run file the nodes bound it; figures are kept per rank
        raise Invalid(
            f"{name}: expected at most {MAX_NODES * MAX_RANKS_PER_NODE} ranks, got {mesh.num_ranks}",
            hint=f"no run has more than {MAX_NODES} nodes with {MAX_RANKS_PER_NODE} ranks each",
            code="mesh-ranks",
        )
    return mesh
