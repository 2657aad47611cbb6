"""From DCP's write items to arrays: what a save will consist of, computed by its coordinator before any byte is
written.

Pure. Neighbours: `boxes` (which array boxes make), `writer`, `publish` (what becomes of it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank, Step, UploadId, WriteId
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.layout import ArraySpec, Sharding
from behemoth.checkpoint.names import escaped_paths
from behemoth.checkpoint.paths import step_prefix
from behemoth.dcp.box_shards import box_spec
from behemoth.dcp.boxes import array_spec, mesh_of
from behemoth.dcp.contents import CONTENTS_ARRAY, Empty
from behemoth.dcp.dtypes import dtype_name
from behemoth.dcp.items import tensor_item
from behemoth.dcp.orders import Orders, ShardName
from behemoth.spec.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """`arrays` are those of the tensors by name, `folders` those of all arrays, the record of contents among them;
    `begun`: the uploads of objects that several ranks share."""

    step: Step
    write_id: WriteId
    mesh: Mesh
    sharding: Sharding
    arrays: Mapping[str, ArraySpec]
    empty: Mapping[str, Empty]
    folders: Mapping[str, str]
    begun: Mapping[ShardName, UploadId] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return step_prefix(self.step, self.write_id)


def saved_state(
    plans: Sequence[Sequence[WriteItem]], *, step: Step, write_id: WriteId, sharding: Sharding
) -> SavedState:
    """`plans` has the items of each rank. O(items). `sharding`: `box` for buckets, `array` for files.

    Raises Invalid, naming the tensor, for what the format cannot hold or ranks disagree on.
    """
    boxes: dict[str, list[Box]] = {}
    heads: dict[str, tuple[str, tuple[int, ...]]] = {}
    for item in (tensor_item(item) for items in plans for item in items if item.type != WriteItemType.BYTE_IO):
        if item.name == CONTENTS_ARRAY:
            raise Invalid(
                f"tensor {item.name!r}: expected another key, got that of the record of values",
                hint="rename it in the state dict",
                code="dcp-key",
            )
        head = dtype_name(item.dtype, key=item.name), item.shape
        if heads.setdefault(item.name, head) != head:
            raise Invalid(
                f"tensor {item.name!r}: expected {heads[item.name]} on every rank, got {head} on one",
                code="dcp-ranks-differ",
            )
        boxes.setdefault(item.name, []).extend([item.box] if item.num_bytes else [])
    full = {name: head for name, head in heads.items() if 0 not in head[1]}
    cut = partial(box_spec, num_ranks=len(plans)) if sharding == "box" else array_spec
    arrays = {name: cut(name, dtype, shape, boxes[name]) for name, (dtype, shape) in full.items()}
    names = [*arrays, CONTENTS_ARRAY]
    return SavedState(
        step=step,
        write_id=write_id,
        mesh=mesh_of(len(plans)),
        sharding=sharding,
        arrays=arrays,
        empty={name: Empty(dtype=head[0], shape=head[1]) for name, head in heads.items() if name not in full},
        folders=dict(zip(names, escaped_paths(names), strict=True)),
    )


def rank_boxes(items: Iterable[WriteItem]) -> dict[str, list[Box]]:
    """The boxes of a rank that has these items, by array; empty ones are left out."""
    boxes: dict[str, list[Box]] = {}
    for item in (tensor_item(item) for item in items if item.type != WriteItemType.BYTE_IO):
        if item.num_bytes:
            boxes.setdefault(item.name, []).append(item.box)
    return boxes


def rank_orders(state: SavedState, rank: Rank, items: Iterable[WriteItem]) -> Orders:
    """The orders of a rank with these items."""
    return orders_of(
        state, rank, [state.arrays[name] for name in {item.index.fqn for item in items} & state.arrays.keys()]
    )


def orders_of(state: SavedState, rank: Rank, arrays: Iterable[ArraySpec]) -> Orders:
    """The orders of a rank with boxes of these arrays."""
    of_rank = tuple(sorted(arrays, key=lambda array: array.name))
    names = {array.name for array in of_rank}
    return Orders(
        rank=rank,
        step=state.step,
        write_id=state.write_id,
        mesh=state.mesh,
        sharding=state.sharding,
        arrays=of_rank,
        folders={name: state.folders[name] for name in names},
        begun={shard: upload_id for shard, upload_id in state.begun.items() if shard[0] in names},
    )
