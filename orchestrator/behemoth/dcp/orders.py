"""What the coordinator of a DCP save tells every rank, and what every rank tells it back: values that travel with DCP's
own plans and results. A rank is told of its own arrays only, since DCP sends each its orders one by one.

Neighbours: `writer` makes and judges them, `box_writer` acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from behemoth.base.ids import Rank, Step, UploadId, WriteId
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout, Sharding
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.records import Value
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.ports import PartReceipt
from behemoth.spec.mesh import Mesh

PIECES = "__pieces"
"""Folder of what ranks leave for the coordinator; no array can have a name that gives it (`checkpoint.names`)."""
ShardName = tuple[str, int]
"""An array and the number of one of its objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedArray:
    """An array, and its folder below the write's prefix, which follows from the names of all arrays."""

    grid: Grid
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Those of `rank`. `folders` has the folder of each of its arrays below the write's prefix, `begun` the uploads of
    the objects among them that it shares with others; none on files."""

    rank: Rank
    step: Step
    write_id: WriteId
    mesh: Mesh
    sharding: Sharding
    arrays: tuple[ArraySpec, ...]
    folders: Mapping[str, str]
    begun: Mapping[ShardName, UploadId] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return step_prefix(self.step, self.write_id)

    def placed(self) -> dict[str, PlacedArray]:
        """Where each array lies, by name."""
        # As `cuts.with_close_chunks` cuts all arrays together, if any of them needs it: the others are the same so.
        layout = Layout(mesh=self.mesh, arrays=self.arrays, sharding=self.sharding, chunking="close")
        return {
            grid.spec.name: PlacedArray(grid=grid, folder=f"{self.prefix}/{self.folders[grid.spec.name]}")
            for grid in grids(layout)
        }

    @property
    def pieces_key(self) -> str:
        """Key of the object in which the rank leaves what it cannot send as a part."""
        return f"{self.prefix}/{PIECES}/{self.rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenBox:
    """The spans of one item. Their `array` means nothing: the coordinator alone knows all arrays."""

    name: str
    spans: tuple[WrittenSpan, ...] = ()
    """Empty for an empty box."""


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


class SentObject(NamedTuple):
    """An object of an array that is whole, and the CRC-32C of all its bytes."""

    array: str
    shard: int
    crc: int


class SentPart(NamedTuple):
    """A part of one."""

    array: str
    shard: int
    receipt: PartReceipt


class SentPiece(NamedTuple):
    """Bytes [offset, offset + length) of a chunk's data, which lie from `at` on in the sender's object of pieces, and
    their CRC-32C as the sender has them."""

    array: str
    chunk: int
    offset: int
    length: int
    at: int
    crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObjects:
    """All that a rank has put into a bucket. `parts` are those of objects that it shares with others."""

    objects: tuple[SentObject, ...]
    parts: tuple[SentPart, ...]
    pieces: tuple[SentPiece, ...]
    pieces_key: str


Told = WrittenBox | KeptValue | KeptPickle | SentObjects
"""What a rank returns for its part of a save."""
