"""From DCP's write items to arrays: what a save will consist of, as its coordinator knows it before a byte is written.

Pure. Neighbours: `boxes` (which array boxes make), `writer`, `publish` (what becomes of it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.layout import ArraySpec
from behemoth.checkpoint.names import escaped_paths
from behemoth.checkpoint.paths import step_prefix
from behemoth.dcp.boxes import array_spec, mesh_of
from behemoth.dcp.contents import CONTENTS_ARRAY, Empty
from behemoth.dcp.dtypes import dtype_name
from behemoth.dcp.items import tensor_item
from behemoth.dcp.orders import Orders
from behemoth.spec.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """`arrays` are those of the tensors by name, `folders` those of all arrays, the record of contents among them."""

    step: Step
    write_id: WriteId
    mesh: Mesh
    arrays: Mapping[str, ArraySpec]
    empty: Mapping[str, Empty]
    folders: Mapping[str, str]

    @property
    def prefix(self) -> str:
        return step_prefix(self.step, self.write_id)


def saved_state(plans: Sequence[Sequence[WriteItem]], *, step: Step, write_id: WriteId) -> SavedState:
    """`plans` has the items of each rank. O(items). Raises Invalid, naming the tensor, for what the format cannot hold
    or ranks disagree on."""
    boxes: dict[str, list[Box]] = {}
    heads: dict[str, tuple[str, tuple[int, ...]]] = {}
    for item in (tensor_item(item) for items in plans for item in items if item.type != WriteItemType.BYTE_IO):
        head = dtype_name(item.dtype, key=item.name), item.shape
        if heads.setdefault(item.name, head) != head:
            raise Invalid(
                f"tensor {item.name!r}: expected {heads[item.name]} on every rank, got {head} on one",
                code="dcp-ranks-differ",
            )
        boxes.setdefault(item.name, []).extend([item.box] if item.num_bytes else [])
    full = {name: head for name, head in heads.items() if 0 not in head[1]}
    arrays = {name: array_spec(name, dtype, shape, boxes[name]) for name, (dtype, shape) in full.items()}
    names = [*arrays, CONTENTS_ARRAY]
    return SavedState(
        step=step,
        write_id=write_id,
        mesh=mesh_of(len(plans)),
        arrays=arrays,
        empty={name: Empty(dtype=head[0], shape=head[1]) for name, head in heads.items() if name not in full},
        folders=dict(zip(names, escaped_paths(names), strict=True)),
    )


def rank_orders(state: SavedState, items: Iterable[WriteItem]) -> Orders:
    """Those of the rank that has these items."""
    names = {item.index.fqn for item in items} & state.arrays.keys()
    return Orders(
        step=state.step,
        write_id=state.write_id,
        mesh=state.mesh,
        arrays=tuple(state.arrays[name] for name in sorted(names)),
        folders={name: state.folders[name] for name in names},
    )
