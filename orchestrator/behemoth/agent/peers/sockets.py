"""Frames and raw bytes over one blocking TCP connection; every wait ends by a deadline.

Payloads are sent out of a file or a buffer and received straight into the caller's memory. What goes wrong is
Unavailable (the connection is gone), Timeout, or Corrupt (the other end does not speak the protocol). The neighbours
are `server` and `client`, which know what is said.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Timeout, Unavailable
from behemoth.wire.frames import LENGTH_BYTES, check_length, decode_body, encode_frame

SLOWEST_BYTES_PER_S = 1 << 20
"""A payload that moves more slowly than this counts as stuck."""
LATE = "peer-timeout"
"""Code of the error for a deadline that is over."""
_MOST_SENT_BYTES = 1 << 30  # sendfile(2) moves at most about 2 GiB
LOOK_S = 0.05
"""How soon a wait sees that it was given up."""

T = TypeVar("T")


def payload_limit_s(limit_s: float, num_bytes: int) -> float:
    """How long a payload may take when a short message may take `limit_s`."""
    return limit_s + num_bytes / SLOWEST_BYTES_PER_S


def connect(host: str, port: int, *, limit_s: float, cancelled: Callable[[], bool]) -> PeerSocket:
    """A connection to one of the host's addresses, each of which has `limit_s`. Raises Conflict soon after `cancelled`
    says so, and OSError."""
    refused = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        link = PeerSocket(socket.socket(family, kind, protocol))
        try:
            code = link.connect(address, deadline=time.monotonic() + limit_s, cancelled=cancelled)
        except BaseException:
            link.close()
            raise
        if code == 0:
            return link
        link.close()
        refused = OSError(code, os.strerror(code))
    raise refused


class PeerSocket:
    """Owns `sock`, used by one thread. Deadlines are of `time.monotonic`. `heard_s`: when bytes last came."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.heard_s = time.monotonic()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connect(self, address: tuple[Any, ...], *, deadline: float, cancelled: Callable[[], bool]) -> int:
        """0, or the errno of the failure."""
        code = self._sock.connect_ex(address)
        if code != errno.EINPROGRESS:
            return code
        if not self._is_ready(select.POLLOUT, deadline, cancelled):
            return errno.ETIMEDOUT
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def cut(self) -> None:
        """From any thread: whatever the owner waits for ends with Unavailable."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """By the thread that uses it. Idempotent."""
        self._sock.close()

    def send(self, message: object, *, deadline: float) -> None:
        self.send_buffers([encode_frame(message)], deadline=deadline)

    def receive(
        self,
        decoder: msgspec.msgpack.Decoder[T],
        *,
        limit_bytes: int,
        deadline: float,
        silence_s: float = math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> T:
        """The next message. Raises Corrupt before anything larger than `limit_bytes` is allocated, and what
        `receive_into` does."""
        head = bytearray(LENGTH_BYTES)
        self.receive_into(memoryview(head), deadline=deadline, silence_s=silence_s, cancelled=cancelled)
        length = int.from_bytes(head, "little")
        check_length(length, limit_bytes)
        body = bytearray(length)
        self.receive_into(memoryview(body), deadline=deadline, silence_s=silence_s, cancelled=cancelled)
        return decode_body(decoder, bytes(body))

    def until_readable(self, *, deadline: float, cancelled: Callable[[], bool]) -> None:
        """Until something comes, which may be the end. Raises Conflict soon after `cancelled` says so."""
        if not self._is_ready(select.POLLIN, deadline, cancelled):
            raise _late("something to come", "nothing")

    def send_buffers(self, buffers: Sequence[Buffer], *, deadline: float) -> None:
        """The bytes of the buffers, one behind the other, without a copy. Blocks until the kernel has them all."""
        for buffer in buffers:
            left = memoryview(buffer)
            left = left.cast("B") if left.nbytes else left
            while left:
                left = left[self._try_send(left, deadline) :]

    def send_file(self, fd: int, offset_bytes: int, length_bytes: int, *, deadline: float) -> None:
        """From a file's pages, without a copy through this process."""
        end = offset_bytes + length_bytes
        while offset_bytes < end:
            offset_bytes += self._try_send_file(fd, offset_bytes, end - offset_bytes, deadline)

    def receive_into(
        self,
        into: memoryview,
        *,
        deadline: float,
        silence_s: float = math.inf,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Fill `into`. Raises Unavailable when the other end closes before that, Timeout at the deadline and when
        nothing comes for `silence_s`, Conflict soon after `cancelled` says so."""
        while into:
            try:
                received = self._sock.recv_into(into)
            except BlockingIOError:
                # Asked here too: where a little comes again and again, no wait is long enough to be over.
                if _is_over(deadline, cancelled) or not self._is_ready(
                    select.POLLIN, min(deadline, time.monotonic() + silence_s), cancelled
                ):
                    raise _late("all bytes to come", f"all but {len(into)}") from None
                continue
            except OSError as error:
                raise _broken(error) from error
            if received == 0:
                raise Unavailable("peer connection: expected more bytes, got its end", code="peer-closed")
            self.heard_s = time.monotonic()
            into = into[received:]

    def _try_send(self, left: memoryview, deadline: float) -> int:
        try:
            return self._sock.send(left, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._wait(select.POLLOUT, deadline)
            return 0
        except OSError as error:
            raise _broken(error) from error

    def _try_send_file(self, fd: int, offset_bytes: int, length_bytes: int, deadline: float) -> int:
        try:
            sent = os.sendfile(self._sock.fileno(), fd, offset_bytes, min(length_bytes, _MOST_SENT_BYTES))
        except BlockingIOError:
            self._wait(select.POLLOUT, deadline)
            return 0
        except OSError as error:
            raise _broken(error) from error
        if sent == 0:
            raise Unavailable(f"peer connection: expected {length_bytes} more bytes in the file, got its end")
        return sent

    def _is_ready(self, events: int, deadline: float, cancelled: Callable[[], bool]) -> bool:
        """False once the deadline is over. Raises Conflict soon after `cancelled` says so."""
        poller = select.poll()
        poller.register(self._sock, events)
        while not poller.poll(LOOK_S * 1000):
            if _is_over(deadline, cancelled):
                return False
        return True

    def _wait(self, events: int, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        poller = select.poll()
        poller.register(self._sock, events)
        if left_s <= 0 or not poller.poll(left_s * 1000):
            raise _late("all bytes to be taken", "some left")


def _is_over(deadline: float, cancelled: Callable[[], bool]) -> bool:
    if cancelled():
        raise Conflict("peer connection: given up before all was there", code="cancelled")
    return time.monotonic() > deadline


def _broken(error: OSError) -> Unavailable:
    return Unavailable(f"peer connection: {error.strerror or error}", code="peer-closed")


def _late(expected: str, got: str) -> Timeout:
    return Timeout(f"peer connection: expected {expected} in time, got {got}", code=LATE)
