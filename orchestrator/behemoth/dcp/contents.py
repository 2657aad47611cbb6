"""What a DCP checkpoint holds beside its arrays, as one typed record in the array `state/dcp`.

DCP has values that are no tensors, tensors without elements, and nested dicts that it flattened; the format has arrays.
A checkpoint without this record, of a run of ours or an import, loads through DCP as well: it has tensors only.
Neighbours: `values` (single values), `checkpoint.records` (the bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from typing_extensions import Buffer

from behemoth.base.decoding import decode_builtins, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.records import Value, decode_record, encode_record, record_size_bytes
from behemoth.dcp.text import is_text

CONTENTS_ARRAY = "state/dcp"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """A tensor without elements: an array must have one."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is no array, by the flattened key of the state dict.

    `values` are in the typed form of `values`; `pickled` are objects as torch.save wrote them, kept
    because the caller allowed it; `paths` are the keys, from outer to inner, of which each flattened key was made.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    pickled: Mapping[str, bytes] = field(default_factory=dict)
    empty: Mapping[str, Empty] = field(default_factory=dict)
    paths: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The record, as long as it needs to be. Equal contents give equal bytes. Raises Invalid for a key that is no
        text."""
        odd = next((key for key in (*self.values, *self.pickled, *self.empty, *self.paths) if not is_text(key)), None)
        if odd is not None:
            raise Invalid(
                f"key {odd!r:.80}: expected one that UTF-8 can hold, got surrogates in it",
                hint="rename it in the state dict",
                code="dcp-key",
            )
        document: dict[str, Value] = {
            "version": FORMAT_VERSION,
            "values": dict(sorted(self.values.items())),
            "pickled": dict(sorted(self.pickled.items())),
            "empty": {key: {"dtype": one.dtype, "shape": list(one.shape)} for key, one in sorted(self.empty.items())},
            "paths": {key: [*path] for key, path in sorted(self.paths.items())},
        }
        return encode_record(document, record_size_bytes(document))

    @staticmethod
    def decode(data: Buffer) -> Contents:
        """Raises Corrupt for what `encode` did not make, Invalid for a newer version."""
        document = decode_record(data)
        try:
            version = decode_builtins(document, _Version).version
            if version == FORMAT_VERSION:
                found = decode_builtins(document, _Document)
                return Contents(values=found.values, pickled=found.pickled, empty=found.empty, paths=found.paths)
        except msgspec.ValidationError as error:
            raise Corrupt(
                f"array {CONTENTS_ARRAY!r}: expected a record of contents, got: {told(error)}", code="dcp-contents"
            ) from error
        raise Invalid(
            f"array {CONTENTS_ARRAY!r}: expected version {FORMAT_VERSION}, got {version}",
            hint="a newer Behemoth wrote it: upgrade this one",
            code="format-unknown",
        )


def paths_of(planner_data: object) -> dict[str, tuple[str | int, ...]]:
    """The paths from the planner data of torch's own planner; none for that of another one."""
    if not isinstance(planner_data, dict):
        return {}
    return {
        key: path
        for key, path in planner_data.items()
        if isinstance(key, str) and isinstance(path, tuple) and all(type(part) in (str, int) for part in path)
    }


class _Version(msgspec.Struct, kw_only=True):
    version: int


class _Document(msgspec.Struct, kw_only=True):
    """Later minors may add fields."""

    values: dict[str, Any]
    pickled: dict[str, bytes]
    empty: dict[str, Empty]
    paths: dict[str, tuple[str | int, ...]]
