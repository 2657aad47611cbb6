"""Keys of an array's objects below the prefix of a write. No I/O; writers and readers alike take them from here.

Neighbours: `paths`, which spells the keys of a run's checkpoints, and `grid`, which says how many shards there are.
"""

from __future__ import annotations

from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import METADATA


def array_folder(prefix: str, layout: Layout, array: int) -> str:
    """Folder of an array's objects. `array` is its position in the layout."""
    return f"{prefix}/{layout.paths[array]}"


def shard_key(prefix: str, layout: Layout, array: int, shard: int) -> str:
    """Key of a shard, counted in C order of the array's grid of shards."""
    return f"{array_folder(prefix, layout, array)}/{grids(layout)[array].shard_key(shard)}"


def metadata_key(prefix: str, layout: Layout, array: int) -> str:
    """Key of the array's zarr.json."""
    return f"{array_folder(prefix, layout, array)}/{METADATA}"
