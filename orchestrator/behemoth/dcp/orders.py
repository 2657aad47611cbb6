"""What the coordinator of a DCP save tells every rank, and what every rank tells it back: values that travel with DCP's
own plans and results. A rank is told of its own arrays only, since DCP sends each its orders one by one.

Neighbours: `writer` makes and judges them, `box_writer` acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.receipt import WrittenSpan
from behemoth.checkpoint.records import Value
from behemoth.spec.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An array, and its folder below the write's prefix, which follows from the names of all arrays."""

    grid: Grid
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """One rank's. `folders` has the folder of each of its arrays below the write's prefix."""

    step: Step
    write_id: WriteId
    mesh: Mesh
    arrays: tuple[ArraySpec, ...]
    folders: Mapping[str, str]

    def placed(self) -> dict[str, Placed]:
        """Where each array lies, by name."""
        prefix = step_prefix(self.step, self.write_id)
        layout = Layout(mesh=self.mesh, arrays=self.arrays)
        return {
            grid.spec.name: Placed(grid=grid, folder=f"{prefix}/{self.folders[grid.spec.name]}")
            for grid in grids(layout)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenBox:
    """The spans of one item. Their `array` means nothing: the coordinator alone knows all arrays."""

    name: str
    spans: tuple[WrittenSpan, ...] = ()
    """None of an empty box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptValue:
    """An item that is no tensor, in its typed form."""

    key: str
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPickle:
    """An item that has no typed form, as torch.save made it."""

    key: str
    data: bytes
