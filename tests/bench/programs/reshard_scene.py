"""The arrays of the resharding benchmark and who holds what of them, for the harness and for the ranks alike.

Every element is a function of its place, so that a rank knows what it must get back, on any mesh.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.spec.mesh import Mesh

WIDTH, HIDDEN = 2048, 8192
COLUMNS = {**dict.fromkeys(("q", "k", "v"), (WIDTH, WIDTH)), **dict.fromkeys(("gate", "up"), (WIDTH, HIDDEN))}
ROWS = {"o": (WIDTH, WIDTH), "down": (HIDDEN, WIDTH)}
"""One dense layer of 256 MiB in elements of 4 bytes, [in, out]: what tensor parallelism cuts along dim 1, and dim 0."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A change of the mesh. `axis` is tp: blocks of columns or rows; or dp: flat ranges, as an optimizer has them."""

    axis: str
    saved_ranks: int
    ranks: int

    @property
    def name(self) -> str:
        return f"{self.axis.upper()} {self.saved_ranks} -> {self.ranks}"


CASES = (
    Case(axis="tp", saved_ranks=4, ranks=2),
    Case(axis="tp", saved_ranks=2, ranks=4),
    Case(axis="dp", saved_ranks=4, ranks=3),
)


def shapes(num_layers: int) -> dict[str, tuple[int, int]]:
    """By name, in the order of the layers."""
    layer = {**COLUMNS, **ROWS}
    return {f"layers.{at}.{name}": shape for at in range(num_layers) for name, shape in layer.items()}


def split_dim(name: str) -> int:
    """Which dim tp cuts."""
    return 0 if name.rpartition(".")[2] in ROWS else 1


def layout(axis: str, num_ranks: int, num_layers: int) -> Layout:
    """The arrays on so many ranks."""
    mesh = Mesh(tp=num_ranks, edp=num_ranks) if axis == "tp" else Mesh(dp=num_ranks, edp=num_ranks)
    return Layout(
        mesh=mesh,
        arrays=tuple(
            ArraySpec(name=name, dtype="int32", shape=shape, dims=((split_dim(name), "tp"),))
            if axis == "tp"
            else ArraySpec(name=name, dtype="int32", shape=shape, flat_over="dp")
            for name, shape in shapes(num_layers).items()
        ),
    )


def held(axis: str, num_ranks: int, rank: int, num_layers: int) -> dict[str, np.ndarray]:
    """What a rank holds, contiguous: blocks for tp, flat pieces for dp."""
    return {name: _part(axis, num_ranks, rank, name, shape) for name, shape in shapes(num_layers).items()}


def _part(axis: str, num_ranks: int, rank: int, name: str, shape: tuple[int, int]) -> np.ndarray:
    whole = np.arange(shape[0] * shape[1], dtype=np.uint32)
    whole *= np.uint32(2_654_435_761)
    whole ^= np.uint32(zlib.crc32(name.encode()))
    if axis == "tp":
        return np.ascontiguousarray(np.split(whole.view(np.int32).reshape(shape), num_ranks, split_dim(name))[rank])
    share = -(-whole.size // num_ranks)
    return whole[rank * share : (rank + 1) * share].view(np.int32).copy()
