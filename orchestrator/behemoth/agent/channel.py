"""The agent's end of a socket pair to one of its own processes: worker, fork server or store process.

Lives in the event loop and never blocks it: what the socket does not take is queued with its descriptors.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from behemoth.base.errors import BehemothError
from behemoth.wire.ends import Inbox, send_with
from behemoth.wire.frames import encode_frame

T = TypeVar("T")


class Channel(Generic[T]):
    """Owns `sock` from `open` to `close`. `on_message` gets each message, `on_end` is called once when the peer is gone
    or talks rubbish, not after `close`."""

    def __init__(
        self,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[T],
        *,
        on_message: Callable[[T], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._inbox = Inbox(sock, decoder)
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._is_open = False

    def open(self) -> None:
        """Start listening; call it inside the event loop."""
        self._sock.setblocking(False)
        self._is_open = True
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Never blocks; the caller keeps its descriptors. A message to a peer that is gone is dropped."""
        if not self._is_open:
            return
        self._unsent.append((encode_frame(message), [os.dup(fd) for fd in descriptors]))
        if len(self._unsent) == 1:
            self._write()

    def drain(self) -> None:
        """Handle everything that the peer has sent so far, its end included."""
        while self._is_open and self._read():
            pass

    def close(self) -> None:
        """Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        for _, descriptors in self._unsent:
            _close_all(descriptors)
        self._unsent.clear()
        self._inbox.close()
        self._sock.close()

    def _read(self) -> bool:
        """One read. False when nothing more is there."""
        try:
            messages = self._inbox.read()
        except BlockingIOError:
            return False
        except BehemothError as error:
            self._end(error.message)
            return False
        for message in messages:
            self._on_message(message)
        return True

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unsent:
            frame, descriptors = self._unsent[0]
            try:
                sent = send_with(self._sock, frame, descriptors)
            except BlockingIOError:
                loop.add_writer(self._sock, self._write)
                return
            except OSError:
                return  # the reader sees the end and tells it
            _close_all(descriptors)
            self._unsent[0] = (frame[sent:], [])
            if sent == len(frame):
                self._unsent.popleft()
        loop.remove_writer(self._sock)

    def _end(self, reason: str) -> None:
        self.close()
        self._on_end(reason)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
