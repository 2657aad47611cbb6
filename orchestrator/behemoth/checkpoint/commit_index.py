"""A checkpoint's compact metadata, the object `index`: its layout, and the CRC of every metadata object beside it.

One small read tells a restore everything, where walking a Zarr hierarchy takes thousands. The commit record covers the
index, the index covers each zarr.json, and chunk CRCs cover the rest. No I/O. Neighbours: `commit`, `reader`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_msgpack, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids, group_json
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.names import groups_of
from behemoth.checkpoint.paths import METADATA

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 1 << 20
"""Most bytes of one zarr.json."""

_Crc = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataObject:
    """A zarr.json: its key below the step's prefix, size and CRC-32C."""

    key: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_METADATA_BYTES)]
    crc: _Crc


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitIndex:
    """`content_crcs` has, for each array in the layout's order, the CRC-32C over the CRCs of its chunks."""

    layout: Layout
    metadata: tuple[MetadataObject, ...]
    content_crcs: tuple[_Crc, ...]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(
            _Document(
                version=FORMAT_VERSION,
                layout=self.layout.encode(),
                metadata=self.metadata,
                content_crcs=self.content_crcs,
            )
        )

    @staticmethod
    def decode(data: bytes) -> CommitIndex:
        """Raises Corrupt for what is no index, or not one of its own layout, Invalid for one of a newer release."""
        try:
            document = decode_msgpack(data, _Document)
        except UNDECODABLE as error:
            raise Corrupt(
                f"index of {len(data)} bytes: expected its fields, got: {told(error)}", code="index-rubbish"
            ) from error
        if document.version != FORMAT_VERSION:
            raise Invalid(
                f"index: expected version {FORMAT_VERSION}, got {document.version}",
                hint="a newer Behemoth wrote it: upgrade this one",
                code="format-unknown",
            )
        layout = Layout.decode(document.layout)
        # Keys only: a later minor version may say more in its zarr.json, and the CRC covers whatever that is.
        keys = [one.key for one in document.metadata]
        if keys != _metadata_keys(layout) or len(document.content_crcs) != len(layout.arrays):
            raise Corrupt(
                f"index of {len(data)} bytes: expected the metadata of its layout, got others", code="index-layout"
            )
        return CommitIndex(layout=layout, metadata=document.metadata, content_crcs=document.content_crcs)


def metadata_objects(layout: Layout) -> dict[str, bytes]:
    """Every zarr.json of a layout by its key below the step's prefix: the top group, groups between, arrays."""
    objects = {METADATA: group_json()}
    objects |= {f"{group}/{METADATA}": group_json() for group in groups_of(layout.paths)}
    objects |= {f"{path}/{METADATA}": grid.zarr_json() for path, grid in zip(layout.paths, grids(layout), strict=True)}
    return objects


def _metadata_keys(layout: Layout) -> list[str]:
    """The keys of `metadata_objects`, sorted."""
    folders = [*groups_of(layout.paths), *layout.paths]
    return sorted([METADATA, *(f"{folder}/{METADATA}" for folder in folders)])


def described(objects: dict[str, bytes]) -> tuple[MetadataObject, ...]:
    """The entries of the index for these objects, in order of key."""
    return tuple(
        MetadataObject(key=key, size_bytes=len(data), crc=crc32c(data)) for key, data in sorted(objects.items())
    )


class _Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int
    layout: bytes
    metadata: tuple[MetadataObject, ...]
    content_crcs: tuple[_Crc, ...]
