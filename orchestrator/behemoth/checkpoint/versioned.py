"""Small framed records that carry their format's version: an older release must refuse a newer one, not misread it.

Neighbours: `framing` (every bit as written), `owner` and `marker`, which are such records.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.commit_record import FORMAT_UNKNOWN, FormatVersion
from behemoth.checkpoint.framing import unframed

_Record = TypeVar("_Record")


def decode_versioned(data: bytes, kind: type[_Record], *, name: str, major: int) -> _Record:
    """The record in a line that `framed` made. Raises Corrupt (`NAME-rubbish`, `NAME-crc`) unless every bit is as
    written, Invalid for another major version."""
    body = unframed(data, name=name)
    try:
        form = decode_json(body, _Format).format
        if form.major != major:
            raise Invalid(
                f"{name} record: expected format {major}.x, got {form.major}.{form.minor}",
                hint="a newer Behemoth wrote it: upgrade this one",
                code=FORMAT_UNKNOWN,
            )
        return decode_json(body, kind)
    except UNDECODABLE as error:
        raise Corrupt(
            f"{name} record of {len(data)} bytes: expected its fields, got: {told(error)}", code=f"{name}-rubbish"
        ) from error


class _Format(msgspec.Struct, kw_only=True):
    format: FormatVersion
