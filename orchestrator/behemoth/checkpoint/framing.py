"""One line of JSON around a record and the CRC-32C of its bytes: readable to operators, exact to the bit.

A truncated, edited or flipped record must never pass for one, so the line has one form only and anything else is
damage. What the record says is its owner's business. Neighbours: `commit_record` and `versioned`, which use it.
"""

from __future__ import annotations

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import Corrupt
from behemoth.checkpoint.crc import crc32c


def framed(body: bytes) -> bytes:
    """The line for a record of compact JSON."""
    return b'{"crc32c":"%08x","record":%s}\n' % (crc32c(body), body)


def unframed(data: bytes, *, name: str) -> bytes:
    """The record in a line that `framed` made. Raises Corrupt (`NAME-rubbish`, `NAME-crc`) unless every bit is as
    written."""
    what = f"{name} record of {len(data)} bytes"
    try:
        body = bytes(decode_json(data, _Frame).record)
    except UNDECODABLE as error:
        raise Corrupt(f"{what}: expected a line of JSON, got: {told(error)}", code=f"{name}-rubbish") from error
    if data != framed(body):
        raise Corrupt(f"{what}: expected the CRC of its bytes, got another", code=f"{name}-crc")
    return body


class _Frame(msgspec.Struct, kw_only=True):
    crc32c: str
    record: msgspec.Raw
