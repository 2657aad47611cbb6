"""Reads the file that `spec.model.inventory` names: an inventory, a config.json of a Llama 4 model, a safetensors file,
or the index of several.

The format is recognized by the content, safetensors by the file's name. Reads no weights: headers only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from behemoth.spec.llama4 import decode_config
from behemoth.spec.model import MAX_INVENTORY_BYTES, Inventory, decode_inventory, decode_model_json
from behemoth.spec.safetensors_header import (
    LENGTH_BYTES,
    Shapes,
    decode_header,
    decode_index,
    header_bytes,
    inventory_of_shapes,
    shapes_of_index,
)

Read = Callable[[Path, int], bytes]
"""The first bytes of a file, at most so many; raises NotFound, Denied or Invalid naming it."""


class _Kind(msgspec.Struct, frozen=True):
    """Fields that only one of the formats has each."""

    model_type: object = None
    weight_map: object = None


def read_inventory(path: Path, read: Read) -> Inventory:
    """Raises Invalid that names the file and what is wrong with it, and the errors of `read`."""
    source = str(path)
    if path.suffix == ".safetensors":
        return inventory_of_shapes(_header(path, read), source=source)
    data = read(path, MAX_INVENTORY_BYTES + 1)
    kind = decode_model_json(data, _Kind, what="a model inventory", source=source)
    if kind.weight_map is not None:
        index = decode_index(data, source=source)
        headers = {file: _header(path.with_name(file), read) for file in sorted(set(index.values()))}
        return inventory_of_shapes(shapes_of_index(index, headers, source=source), source=source)
    return decode_config(data, source=source) if kind.model_type is not None else decode_inventory(data, source=source)


def _header(path: Path, read: Read) -> Shapes:
    size_bytes = header_bytes(read(path, LENGTH_BYTES), source=str(path))
    return decode_header(read(path, size_bytes), source=str(path))
