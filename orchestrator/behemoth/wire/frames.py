"""Frames: a length, then one msgpack document. Both ends of every connection of ours use these and nothing else.

The length is bounded before a byte of the body is read, and more tightly until the peer has shown its token, so that
nobody makes a coordinator allocate. What does not decode is Corrupt, never a raw trace.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

import msgspec

from behemoth.base.decoding import UNDECODABLE, told
from behemoth.base.errors import Corrupt, Unavailable

PROTOCOL_MAJOR = 1
"""Peers of different majors refuse each other at the handshake."""
PROTOCOL_MINOR = 1
"""Additive: a peer ignores what it does not know of a higher minor."""

MAX_FRAME_BYTES = 16 << 20
MAX_HELLO_BYTES = 64 << 10
"""Limit until the handshake is done."""

_LENGTH = struct.Struct("<I")
LENGTH_BYTES = _LENGTH.size

T = TypeVar("T")
_ENCODER = msgspec.msgpack.Encoder()


def encode_frame(message: object) -> bytes:
    """One frame. Raises Corrupt when the message is larger than any peer would take."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise Corrupt(
            f"frame {type(message).__name__}: expected at most {MAX_FRAME_BYTES} bytes, got {len(body)}",
            code="frame-too-long",
        )
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames, for callers that read by themselves (sockets with descriptors, tests)."""

    def __init__(self, *, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._limit_bytes = limit_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies that are now complete, in order. Raises Corrupt when a length exceeds the limit."""
        self._buffer += data
        bodies = []
        while (body := self._next()) is not None:
            bodies.append(body)
        return bodies

    def _next(self) -> bytes | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        check_length(length, self._limit_bytes)
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return body


async def read_frame(stream: asyncio.StreamReader, *, limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The next body. Raises Unavailable at the end of the stream, Corrupt when a length exceeds the limit. Waits for
    as long as the peer is silent: the caller bounds it."""
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(LENGTH_BYTES))
        check_length(length, limit_bytes)
        return await stream.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Unavailable("connection: the peer closed it", code="connection-closed") from error


def check_length(length: int, limit_bytes: int) -> None:
    """Raises Corrupt when a peer announces more than it may send."""
    if length > limit_bytes:
        raise Corrupt(
            f"frame: expected at most {limit_bytes} bytes, got a length of {length}",
            hint="the peer does not speak this protocol",
            code="frame-too-long",
        )


def decode_body(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """The message in `body`. Raises Corrupt when it is none."""
    try:
        return decoder.decode(body)
    except UNDECODABLE as error:
        raise Corrupt(f"frame: expected a known message, got: {told(error)}", code="frame-undecodable") from error
