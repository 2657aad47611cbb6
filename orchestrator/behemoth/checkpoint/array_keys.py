"""Where an array's objects lie below the prefix of a write. No I/O; who writes and who reads have the keys from here.

Neighbours: `paths`, which spells the keys of a run's checkpoints, and `grid`, which says how many shards there are.
"""

from __future__ import annotations

from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import METADATA


def array_folder(prefix: str, layout: Layout, array: int) -> str:
    """Of an array, counted in the layout's order."""
    return f"{prefix}/{layout.paths[array]}"


def shard_key(prefix: str, layout: Layout, array: int, shard: int) -> str:
    """Of a shard of an array."""
    return f"{array_folder(prefix, layout, array)}/{grids(layout)[array].shard_key(shard)}"


def metadata_key(prefix: str, layout: Layout, array: int) -> str:
    """Of an array's zarr.json."""
    return f"{array_folder(prefix, layout, array)}/{METADATA}"
