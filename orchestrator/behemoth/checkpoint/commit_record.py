"""The record that makes a checkpoint exist: what it is, what it is made of, and enough to judge the next one.

JSON, because operators read it; exact to the bit, because a truncated or edited record must never pass for a commit.
Neighbours: `commit` makes it, `commit_log` finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef

FORMAT_MAJOR = 1
BOX_SHARDS = "box-shards"
"""Feature of format 1.1: an array is several objects (`Layout.sharding`)."""
PADDED_DIMS = "padded-dims"
"""Feature of format 1.2: chunks follow the shares of a dim that programs pad (`ArraySpec.padded`)."""
JOINT_AXES = "joint-axes"
"""Feature of format 1.3: an array is shared out over several axes at once (`ArraySpec.flat_over`)."""
JOINT_DIMS = "joint-dims"
"""Feature of format 1.4: a dim is split over several axes at once (`ArraySpec.dims`)."""
CLOSE_CHUNKS = "close-chunks"
"""Feature of format 1.5: chunks pad hardly anything (`Layout.chunking`)."""
KNOWN_FEATURES = frozenset({BOX_SHARDS, PADDED_DIMS, JOINT_AXES, JOINT_DIMS, CLOSE_CHUNKS})
MAX_RECORD_BYTES = 64 << 20
"""Most bytes of a record; readers check the size before they read the first byte."""
MAX_INDEX_BYTES = 64 << 20
"""Most bytes of the object `index`; that of a model of 2 trillion parameters has 5 MB."""
DAMAGED_HINT = "`behemoth ckpt verify` names all damage; go back to an older checkpoint"
"""Hint of every error about damage of a committed checkpoint."""
FORMAT_UNKNOWN = "format-unknown"
"""Code of the error for what only a newer release can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatVersion:
    """A reader refuses a higher `major` and accepts any `minor` of its own."""

    major: int
    minor: int


def format_of(layout: Layout) -> tuple[FormatVersion, tuple[str, ...]]:
    """The oldest format that has what a layout needs, and the features that its readers must know."""
    features = {
        BOX_SHARDS: layout.sharding != "array",
        PADDED_DIMS: any(array.padded is not None for array in layout.arrays),
        JOINT_AXES: any(isinstance(array.flat_over, tuple) for array in layout.arrays),
        JOINT_DIMS: any(isinstance(axes, tuple) for array in layout.arrays for _, axes in array.dims),
        CLOSE_CHUNKS: layout.chunking == "close",
    }
    minor = max((number for number, is_used in enumerate(features.values(), start=1) if is_used), default=0)
    return FormatVersion(major=FORMAT_MAJOR, minor=minor), tuple(name for name, is_used in features.items() if is_used)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySummary:
    """`content_crc` is the CRC-32C over the CRCs of all chunks in order."""

    name: str
    content_crc: int
    is_zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """One committed checkpoint. `run` says where it came from; `attempt` which start of the gang wrote it.

    `index_bytes` and `index_crc` are of the `index` object, which covers all other metadata; `data_bytes` counts the
    arrays' own bytes. `held_prints` holds eight hex digits for each rank: the CRC-32C over the spans that it held of
    arrays that are meant to move, all zeros when it held none; left out when no rank told. `committed_us` is wall time,
    for people and for the hours and days of retention.
    """

    format: FormatVersion
    required_features: tuple[str, ...]
    run: str
    step: Step
    write_id: WriteId
    attempt: int
    mesh: Mesh
    layout_digest: str
    index_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_INDEX_BYTES)]
    index_crc: int
    data_bytes: int
    arrays: tuple[ArraySummary, ...]
    committed_us: int
    held_prints: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def ref(self) -> CommitRef:
        """Its name in commands and events."""
        return CommitRef(
            step=self.step, write_id=self.write_id, size_bytes=self.data_bytes, committed_us=self.committed_us
        )

    @property
    def prefix(self) -> str:
        """Folder of the checkpoint's objects below the run's root."""
        return step_prefix(self.step, self.write_id)

    def encode(self) -> bytes:
        """One line: the record and the CRC-32C of its bytes."""
        return framed(msgspec.json.encode(self))

    @staticmethod
    def decode(data: bytes) -> CommitRecord:
        """Raises Corrupt unless every bit is as written, Invalid for a format or feature of a newer release."""
        body = unframed(data, name="commit")
        try:
            _check_format(decode_json(body, _Format))
            return decode_json(body, CommitRecord)
        except UNDECODABLE as error:
            raise Corrupt(
                f"commit record of {len(data)} bytes: expected its fields, got: {told(error)}", code="commit-rubbish"
            ) from error


class _Format(msgspec.Struct, kw_only=True):
    format: FormatVersion
    required_features: tuple[str, ...]


def _check_format(found: _Format) -> None:
    if found.format.major != FORMAT_MAJOR:
        raise Invalid(
            f"checkpoint: expected format {FORMAT_MAJOR}.x, got {found.format.major}.{found.format.minor}",
            hint="a newer Behemoth wrote it: upgrade this one",
            code=FORMAT_UNKNOWN,
        )
    if unknown := sorted(set(found.required_features) - KNOWN_FEATURES):
        raise Invalid(
            f"checkpoint: expected no features beyond {sorted(KNOWN_FEATURES)}, got {unknown}",
            hint="a newer Behemoth wrote it: upgrade this one",
            code=FORMAT_UNKNOWN,
        )
