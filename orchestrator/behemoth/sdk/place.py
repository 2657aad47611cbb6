"""Where a rank stands: its numbers and its coordinates on the mesh. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import Sharding
from behemoth.spec.mesh import Axes, Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMesh:
    """The parallel layout, seen from one rank."""

    sizes: Mesh
    rank: Rank

    @property
    def tp(self) -> int:
        return self.sizes.tp

    @property
    def cp(self) -> int:
        return self.sizes.cp

    @property
    def dp(self) -> int:
        return self.sizes.dp

    @property
    def pp(self) -> int:
        return self.sizes.pp

    @property
    def etp(self) -> int:
        return self.sizes.etp

    @property
    def ep(self) -> int:
        return self.sizes.ep

    @property
    def edp(self) -> int:
        return self.sizes.edp

    def size(self, axes: Axes) -> int:
        """The size of an axis, or of several that count as one."""
        return self.sizes.size(axes)

    def coordinate(self, axes: Axes) -> int:
        """This rank's place on `axes`, 0 .. size - 1: on ("cp", "dp") cp + size(cp) * dp."""
        return self.sizes.coordinate(self.rank, axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A rank of a world. `total_steps` is None outside a run."""

    rank: Rank
    world_size: int
    local_rank: int
    mesh: RankMesh
    args: Mapping[str, bool | int | float | str]
    total_steps: int | None
    attempt: int
    sharding: Sharding
    """How shards are cut in the checkpoints that this run saves (`Layout.sharding`)."""


def lone_place(environment: Mapping[str, str]) -> Place:
    """The place outside a run: a world of one rank, or the world that torchrun's variables in `environment` describe.
    All ranks are data-parallel. Raises Invalid for a rank that is not below the world size, or no whole number."""
    rank, world_size, local_rank = (
        _whole(environment, name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if not 0 <= rank < world_size:
        raise Invalid(f"environment: expected RANK below WORLD_SIZE = {world_size}, got {rank}")
    mesh = Mesh(dp=world_size, edp=world_size)
    return Place(
        rank=Rank(rank),
        world_size=world_size,
        local_rank=local_rank,
        mesh=RankMesh(sizes=mesh, rank=Rank(rank)),
        args={},
        total_steps=None,
        attempt=1,
        sharding="array",
    )


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise Invalid(f"environment: expected a whole number in {name}, got {text!r}")
    return int(text)
