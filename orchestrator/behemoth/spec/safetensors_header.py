"""The inventory of a model from the headers of its safetensors files, whatever wrote them.

A file begins with the length of its header (u64, little-endian), then the header: JSON from name to dtype, shape and
offsets (safetensors format). An index, `model.safetensors.index.json`, says which file has which tensor, but no shapes.
Pure: whoever opens files passes their first bytes. Neighbour: `tensor_names`, for how tensors are cut.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated

import msgspec

from behemoth.base.errors import Invalid
from behemoth.spec.expert_stacks import expert_stacks
from behemoth.spec.model import Inventory, decode_model_json, inventory_of
from behemoth.spec.tensor_names import entry_of, is_stack_of_experts

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")

Shapes = Mapping[str, tuple[int, ...]]


class _Tensor(msgspec.Struct, frozen=True):
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]], msgspec.Meta(max_length=8)]


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def decode_index(data: bytes, *, source: str) -> dict[str, str]:
    """The file of each tensor, by name. Raises Invalid that names `source`, also for files in other folders."""
    index = decode_model_json(data, _Index, what="a safetensors index", source=source).weight_map
    for name, file in index.items():
        if not file or "/" in file or file in (".", ".."):
            raise Invalid(
                f"{source}: {name}: expected the name of a file beside the index, got {file!r}", code="inventory-format"
            )
    return index


def header_bytes(first: bytes, *, source: str) -> int:
    """Bytes that the header of a file takes with its length, from the file's first 8 bytes."""
    length = _LENGTH.unpack(first)[0] if len(first) == LENGTH_BYTES else 0
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise Invalid(
            f"{source}: expected a safetensors file with a header of 2 .. {MAX_HEADER_BYTES} bytes, got {length}",
            code="inventory-format",
        )
    return LENGTH_BYTES + int(length)


def decode_header(data: bytes, *, source: str) -> Shapes:
    """Shapes by name, from a file's first `header_bytes`. Raises Invalid for a shorter file and a tensor without
    elements."""
    size_bytes = header_bytes(data[:LENGTH_BYTES], source=source)
    if len(data) != size_bytes:
        raise Invalid(f"{source}: expected a header of {size_bytes} bytes, got {len(data)}", code="inventory-format")
    form = dict[str, msgspec.Raw]
    header = decode_model_json(data[LENGTH_BYTES:], form, what="a safetensors header", source=source)
    tensors = {name: raw for name, raw in header.items() if name != METADATA}
    return {
        name: tuple(decode_model_json(bytes(raw), _Tensor, what=f"a shape of {name}", source=source).shape)
        for name, raw in tensors.items()
    }


def inventory_of_shapes(shapes: Shapes, *, source: str) -> Inventory:
    """In order of name. Experts that are a tensor each come as stacks. The number of experts is dim 0 of the stacks,
    0 where there are none. Raises Invalid when stacks disagree."""
    gathered = expert_stacks(shapes)
    stacks = {shape[0] for name, shape in shapes.items() if is_stack_of_experts(name) and shape}
    stacks |= {gathered.num_experts} if gathered.members else set()
    if len(stacks) > 1:
        raise Invalid(
            f"{source}: expected stacks of equally many experts, got {sorted(stacks)}", code="inventory-format"
        )
    entries = [entry_of(name, shape) for name, shape in sorted(shapes.items()) if name not in gathered.members]
    entries = sorted([*entries, *gathered.entries], key=lambda entry: entry.name)
    return inventory_of(entries, num_experts=stacks.pop() if stacks else 0, source=source)


def shapes_of_index(index: Mapping[str, str], headers: Mapping[str, Shapes], *, source: str) -> Shapes:
    """The shapes of all tensors that an index names, each from the header of its file."""
    missing = next((name for name, file in index.items() if name not in headers[file]), None)
    if missing is not None:
        raise Invalid(
            f"{source}: expected {missing} in {index[missing]}, got a file without it", code="inventory-format"
        )
    return {name: headers[file][name] for name, file in index.items()}
