"""Where this process stands: its rank, and its coordinates on the axes that the reference programs use.

They know data and expert parallelism; a mesh with another axis is refused, never silently treated as replication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from behemoth.sdk import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`dp` ranks share the dense parameters; `ep` ranks hold different experts, `edp` ranks the same ones.

    Expert ranks count ep first (rank = edp_index * ep + ep_index), as the meshes of checkpoints do.
    """

    rank: int
    world_size: int
    local_rank: int
    ep: int
    edp: int

    def __post_init__(self) -> None:
        if self.ep * self.edp != self.world_size:
            raise ValueError(f"mesh: expected ep x edp = {self.world_size} ranks, got {self.ep} x {self.edp}")

    @property
    def ep_index(self) -> int:
        return self.rank % self.ep

    @property
    def edp_index(self) -> int:
        return self.rank // self.ep

    def sharers(self) -> list[list[int]]:
        """Ranks of every group that shares samples of the same experts: one list per edp coordinate."""
        return [[edp * self.ep + ep for ep in range(self.ep)] for edp in range(self.edp)]

    def holders(self) -> list[list[int]]:
        """Ranks of every group that holds the same experts: one list per ep coordinate."""
        return [[edp * self.ep + ep for edp in range(self.edp)] for ep in range(self.ep)]


def placement_of(run: Run) -> Placement:
    """Raises ValueError for a mesh with tensor, context, pipeline or expert-tensor parallelism."""
    mesh = run.mesh
    for axis, size in (("tp", mesh.tp), ("cp", mesh.cp), ("pp", mesh.pp), ("etp", mesh.etp)):
        if size != 1:
            raise ValueError(f"mesh.{axis}: expected 1, the reference programs have no such parallelism; got {size}")
    return Placement(rank=run.rank, world_size=run.world_size, local_rank=run.local_rank, ep=mesh.ep, edp=mesh.edp)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatPiece:
    """One rank's contiguous range of a block of `numel` elements shared by `size` ranks.

    The rule of checkpoints: q = ceil(numel / size), piece i = [i * q, min((i + 1) * q, numel)); late pieces may be
    short or empty.
    """

    numel: int
    size: int
    index: int

    @property
    def quota(self) -> int:
        """q: the longest piece, in elements."""
        return -(-self.numel // self.size)

    @property
    def start(self) -> int:
        return min(self.index * self.quota, self.numel)

    @property
    def stop(self) -> int:
        return min((self.index + 1) * self.quota, self.numel)
