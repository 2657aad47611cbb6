"""The parallel layout: which coordinates a rank has on the dense and on the expert axes.

Dense and expert parameters live on two meshes over the same ranks, which share the pipeline axis (Megatron's order,
innermost first: tp, cp, dp, pp and etp, ep, edp, pp). The module knows ranks only; which tensor goes over which axis
is `behemoth.checkpoint.layout`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.spec.field import About, Integer
from behemoth.spec.nodes import MAX_NODES, MAX_RANKS_PER_NODE

Axis = Literal["tp", "cp", "dp", "pp", "etp", "ep", "edp"]
DENSE_AXES: tuple[Axis, ...] = ("tp", "cp", "dp", "pp")
EXPERT_AXES: tuple[Axis, ...] = ("etp", "ep", "edp", "pp")
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
        is_size = number.isascii() and number.isdigit() and 1 <= len(number) <= 7
        if axis not in axes or axis in sizes or not is_size:
            raise Invalid(
                f"{name}: expected each axis once with its size, got {part.strip()!r:.80}",
                hint=f"write it as tp=4,pp=8,dp=500; axes: {', '.join(axes)}",
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
