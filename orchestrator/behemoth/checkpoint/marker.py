"""Markers: small objects that record about one write that it was rejected, is pinned, or is being deleted.

The name alone counts, so that a damaged marker still does what it is there for: what is pinned stays, what was rejected
is not restored. The contents tell people why and when; `verify` checks them to the bit. Neighbours: `commit_log`
(rejections), `pins`, `gc` (deletions).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import Conflict, Corrupt, Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.framing import framed
from behemoth.checkpoint.paths import marker_key, write_of_marker
from behemoth.checkpoint.small_objects import find_listed, read_listed
from behemoth.checkpoint.versioned import decode_versioned
from behemoth.ports import ObjectInfo, ObjectStore

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
MAX_REASON_CHARACTERS = 4096
MAX_MARKER_BYTES = 1 << 16
GOING = "commit-going"
"""Code of the error for a commit that is marked as being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """`at_us` is wall time, for people; 0 when nobody told."""

    format: FormatVersion
    step: Step
    write_id: WriteId
    reason: str
    at_us: int

    @staticmethod
    def of(step: Step, write_id: WriteId, *, reason: str, at_us: int = 0) -> Marker:
        """In the format of this release; a long reason is cut, and what is no text in it (bytes of a file's name, or of
        a command line) escaped: whatever the reason says, the marker must come to stand."""
        form = FormatVersion(major=FORMAT_MAJOR, minor=FORMAT_MINOR)
        text = reason[:MAX_REASON_CHARACTERS].encode(errors="backslashreplace").decode()
        return Marker(format=form, step=step, write_id=write_id, reason=text, at_us=at_us)

    def encode(self) -> bytes:
        """One line: the record and the CRC-32C of its bytes."""
        return framed(msgspec.json.encode(self))

    @staticmethod
    def decode(data: bytes) -> Marker:
        """Raises Corrupt unless every bit is as written, Invalid for a format of a newer release.

        Rejections of the first release have no CRC: they must have the form in which it wrote them.
        """
        if data.startswith(b'{"step":'):
            return _without_crc(data)
        return decode_versioned(data, Marker, name="marker", major=FORMAT_MAJOR)


def put_up(store: ObjectStore, folder: str, write: tuple[Step, WriteId], *, reason: str) -> str:
    """Have a marker of this write in a folder, durably on return, and give its key. One that stands already, as of a
    call that was cut off, is left as it is."""
    key = marker_key(folder, *write)
    with suppress(Conflict):
        store.create(key, Marker.of(*write, reason=reason).encode())
    return key


def is_put_up(store: ObjectStore, folder: str, write: tuple[Step, WriteId]) -> bool:
    """Whether a marker of this write is in a folder. Blocks for the listing."""
    return find_listed(store, folder, marker_key(folder, *write)) is not None


def read_marker(store: ObjectStore, info: ObjectInfo) -> Marker | None:
    """The marker that was listed, or None when it has gone since. Raises Corrupt for a damaged one, and for one that is
    about another write than its name says, Invalid as `Marker.decode` does."""
    if info.size_bytes > MAX_MARKER_BYTES:
        raise Corrupt(
            f"{info.key}: expected at most {MAX_MARKER_BYTES} bytes, got {info.size_bytes}", code="marker-rubbish"
        )
    data = read_listed(store, info)
    if data is None:
        return None
    try:
        marker = Marker.decode(data)
    except (Corrupt, Invalid) as error:
        raise error.within(info.key) from error
    named = write_of_marker(info.key)
    if named != (marker.step, marker.write_id):
        said = f"write {marker.write_id!r} of step {marker.step}"
        raise Corrupt(f"{info.key}: expected to be about the write in its name, got {said}", code="marker-key")
    return marker


def _without_crc(data: bytes) -> Marker:
    try:
        old = decode_json(data, _Old)
    except UNDECODABLE as error:
        raise Corrupt(
            f"marker record of {len(data)} bytes: expected its fields, got: {told(error)}", code="marker-rubbish"
        ) from error
    fields = {"step": old.step, "write_id": old.write_id, "reason": old.reason}
    if json.dumps(fields, separators=(",", ":")).encode() + b"\n" != data:
        raise Corrupt(
            f"marker record of {len(data)} bytes: expected its fields as they are written, got them in another form",
            code="marker-rubbish",
        )
    return Marker.of(old.step, old.write_id, reason=old.reason)


class _Old(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    step: Step
    write_id: WriteId
    reason: str
