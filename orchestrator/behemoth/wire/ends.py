"""The two ends of a socket pair between processes of one node: frames as everywhere, and open descriptors beside them.

`Peer` is the blocking end, for a worker and for the agent's own child processes; the agent's end lives in its event
loop and uses `Inbox` and `send_with`. Neighbours: `session` has what is said, `frames` how a message is cut out.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

from behemoth.base.errors import Timeout, Unavailable
from behemoth.wire.frames import FrameReader, decode_body, encode_frame

MAX_DESCRIPTORS: Final = 8
_CHUNK_BYTES: Final = 256 << 10

T = TypeVar("T")


class Inbox(Generic[T]):
    """Bytes and descriptors of a stream socket, cut into messages. Descriptors are queued in the order of arrival;
    the receiver of a message that carries some takes them with `take_descriptor`."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._sock = sock
        self._decoder = decoder
        self._frames = FrameReader()
        self._descriptors: deque[int] = deque()

    def read(self) -> list[T]:
        """Messages completed by one read. Raises BlockingIOError when nothing is there, Unavailable at the end of the
        stream, Corrupt for what is no message."""
        try:
            data, descriptors = _receive(self._sock)
        except ConnectionError as error:
            raise Unavailable("session: the connection broke", code="session-closed") from error
        self._descriptors.extend(descriptors)
        if not data:
            raise Unavailable("session: the peer closed it", code="session-closed")
        return [decode_body(self._decoder, body) for body in self._frames.feed(data)]

    def take_descriptor(self) -> int:
        """The oldest descriptor not taken yet, close-on-exec; the caller closes it. Raises Unavailable without one."""
        if not self._descriptors:
            raise Unavailable("session: expected an open descriptor beside the message, got none")
        return self._descriptors.popleft()

    def close(self) -> None:
        """Close descriptors that nobody took."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


class Peer(Generic[T]):
    """The blocking end of a socket pair, used by one thread."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._sock = sock
        self._inbox = Inbox(sock, decoder)
        self._messages: deque[T] = deque()
        self._unsent = b""

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._inbox.close()
        self._sock.close()

    def send(self, message: object, *, timeout_s: float) -> None:
        """Blocks until the socket took it. Raises Timeout, or Unavailable when the peer is gone."""
        deadline = time.monotonic() + timeout_s
        while not self.try_send(message):
            self._wait(select.POLLOUT, deadline, "send to the agent")
        while not self.flush():
            self._wait(select.POLLOUT, deadline, "send to the agent")

    def try_send(self, message: object) -> bool:
        """Never blocks. False: the socket is full and nothing of `message` was taken."""
        if not self.flush():
            return False
        self._unsent = encode_frame(message)
        self.flush()
        return True

    def flush(self) -> bool:
        """Never blocks. True when no byte of an earlier message is left here."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                raise Unavailable(f"session: cannot send: {error.strerror}", code="session-closed") from error
            self._unsent = self._unsent[sent:]
        return True

    def poll(self) -> T | None:
        """The next message if one is there. Never blocks. Raises Unavailable at the end of the stream."""
        if not self._messages:
            with contextlib.suppress(BlockingIOError):
                self._messages.extend(self._inbox.read())
        return self._messages.popleft() if self._messages else None

    def receive(self, *, timeout_s: float, what: str) -> T:
        """The next message. Raises Timeout naming `what`, Unavailable at the end of the stream."""
        deadline = time.monotonic() + timeout_s
        while (message := self.poll()) is None:
            self._wait(select.POLLIN, deadline, what)
        return message

    def take_descriptor(self) -> int:
        """See `Inbox.take_descriptor`."""
        return self._inbox.take_descriptor()

    def _wait(self, events: int, deadline: float, what: str) -> None:
        poller = select.poll()
        poller.register(self._sock, events)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poller.poll(left_s * 1000):
            raise Timeout(f"session: {what}: no answer in time", code="session-timeout")


def send_with(sock: socket.socket, frame: bytes, descriptors: Sequence[int]) -> int:
    """One non-blocking send; how many bytes went. Descriptors travel with the first byte."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    return sock.sendmsg([frame], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One non-blocking read. Descriptors must not leak into programs that a worker starts, hence MSG_CMSG_CLOEXEC
    (`socket.recv_fds` ignores its flags up to Python 3.12)."""
    room = socket.CMSG_LEN(MAX_DESCRIPTORS * array("i").itemsize)
    data, rights, _, _ = sock.recvmsg(_CHUNK_BYTES, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    descriptors = array("i")
    for level, kind, content in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)
