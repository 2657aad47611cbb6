"""Answers this node's peers: one thread accepts, one per connection serves; the number of connections is bounded.

A connection first has to authenticate, within seconds and in small frames; when too many unauthenticated ones are open,
the oldest is closed. Handlers interpret requests; here an error becomes an answer. The neighbours are `client`, the
other end, and `memories`, the first handlers.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from typing_extensions import Buffer

from behemoth.agent.peers.identity import PeerIdentity, admit
from behemoth.agent.peers.sockets import PeerSocket, payload_limit_s
from behemoth.base.errors import BehemothError, Internal, Unavailable
from behemoth.wire.peers import MAX_PEER_FRAME_BYTES, PEER_BUSY, PEER_REQUESTS, PayloadEnd, PeerAnswer, failed

MAX_STRANGERS = 128
"""Most connections that have not authenticated yet."""
MAX_CONNECTIONS = 256
"""Most connections of nodes of this run, each with a thread that mostly waits for its socket. More nodes than that may
ask: the connection that was idle longest is closed, and its node opens another one when it needs it. While all of them
wait for answers, a further node is told that this one is busy."""
HANDSHAKE_LIMIT_S = 5.0
ANSWER_LIMIT_S = 30.0
"""For a message to leave; a payload has more, by its size."""
IDLE_LIMIT_S = 60.0
"""A connection on which nothing is asked for this long is closed; its owner opens another."""
_JOIN_LIMIT_S = 5.0
_ACCEPT_PAUSE_S = 0.1  # when no descriptor is left, say

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Bytes of an open file. Whoever sends them owns the descriptor, and closes it."""

    fd: int
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer and what follows it. `is_whole` is asked once the payload has left. The server fills in
    `payload_bytes`, and closes the descriptor of a FileRange."""

    answer: PeerAnswer
    payload: FileRange | Sequence[Buffer] = ()
    is_whole: Callable[[], bool] = lambda: True


Handler: TypeAlias = Callable[[Any], Reply]
"""Gets requests of one class; runs on the connection's thread and may block for as long as the client's limit allows.
Raises Behemoth's errors, which the client raises again."""


class PeerServer:
    """Serves from `start` to `close` on a socket that listens already. Handlers are called from several threads."""

    def __init__(self, listener: socket.socket, me: PeerIdentity, handlers: Mapping[type, Handler]) -> None:
        self._listener = listener
        self._me = me
        self._handlers = handlers
        self._lock = threading.Lock()
        self._strangers: OrderedDict[PeerSocket, None] = OrderedDict()
        self._known: set[PeerSocket] = set()
        self._idle: OrderedDict[PeerSocket, None] = OrderedDict()  # of those, without a question; the longest first
        self._threads: set[threading.Thread] = set()
        self._is_closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, name="peer-accept", daemon=True)

    def start(self) -> None:
        self._accepting.start()

    def close(self) -> None:
        """Cut every connection and wait for the threads, for a few seconds at most."""
        self._is_closing.set()
        with suppress(OSError):  # it was closed before
            self._woken.shutdown(socket.SHUT_RDWR)  # closing alone says nothing while a forked child has the socket too
        self._woken.close()
        if self._accepting.is_alive():
            self._accepting.join(_JOIN_LIMIT_S)
        with self._lock:
            links, threads = [*self._strangers, *self._known], list(self._threads)
        for link in links:
            link.cut()
        for thread in threads:
            thread.join(_JOIN_LIMIT_S)
        self._listener.close()
        self._wake.close()

    def _accept(self) -> None:
        # The agent keeps the socket for a successor of this process, so it cannot be shut down to end a wait.
        self._listener.setblocking(False)
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._is_closing.is_set():
            poller.poll()
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                _log.warning("peer connections: %s", error.strerror)
                self._is_closing.wait(_ACCEPT_PAUSE_S)
                continue
            self._begin(PeerSocket(sock))

    def _begin(self, link: PeerSocket) -> None:
        thread = threading.Thread(target=self._run, args=(link,), name="peer-serve", daemon=True)
        with self._lock:
            self._strangers[link] = None
            self._threads.add(thread)
            oldest = self._strangers.popitem(last=False)[0] if len(self._strangers) > MAX_STRANGERS else None
        if oldest is not None:
            oldest.cut()
        try:
            thread.start()
        except RuntimeError as error:  # no thread is left, which must not end the one that accepts
            _log.warning("peer connections: %s", error)
            self._end(link, thread)

    def _run(self, link: PeerSocket) -> None:
        """The supervisor of one connection: whatever a peer sends, only its own connection ends."""
        try:
            node = admit(link, self._me, deadline=time.monotonic() + HANDSHAKE_LIMIT_S)
            if not self._know(link):
                self._turn_away(link)
                return
            while not self._is_closing.is_set():
                self._rest(link)
                request = link.receive(
                    PEER_REQUESTS, limit_bytes=MAX_PEER_FRAME_BYTES, deadline=time.monotonic() + IDLE_LIMIT_S
                )
                self._work(link)
                self._answer(link, request, node)
        except BehemothError as error:
            _log.debug("a peer's connection ended: %s", error)
        except Exception:  # noqa: BLE001  # supervisor of a connection: the others go on
            _log.exception("a peer's connection failed")
        finally:
            self._end(link, threading.current_thread())

    def _end(self, link: PeerSocket, thread: threading.Thread) -> None:
        with self._lock:
            self._strangers.pop(link, None)
            self._known.discard(link)
            self._idle.pop(link, None)
            self._threads.discard(thread)
        link.close()

    def _know(self, link: PeerSocket) -> bool:
        """False while all others are being answered."""
        oldest = None
        with self._lock:
            if len(self._known) >= MAX_CONNECTIONS:
                if not self._idle:
                    return False
                oldest = self._idle.popitem(last=False)[0]
                self._known.discard(oldest)
            self._strangers.pop(link, None)
            self._known.add(link)
        if oldest is not None:
            oldest.cut()
        return True

    def _turn_away(self, link: PeerSocket) -> None:
        """A connection that was only cut would look like that of a node which is gone. It stays among the strangers for
        this one answer."""
        deadline = time.monotonic() + HANDSHAKE_LIMIT_S
        link.receive(PEER_REQUESTS, limit_bytes=MAX_PEER_FRAME_BYTES, deadline=deadline)
        busy = Unavailable(f"peer connections: expected at most {MAX_CONNECTIONS}, got another one", code=PEER_BUSY)
        link.send(failed(busy), deadline=deadline)

    def _rest(self, link: PeerSocket) -> None:
        with self._lock:
            if link in self._known:
                self._idle[link] = None

    def _work(self, link: PeerSocket) -> None:
        with self._lock:
            self._idle.pop(link, None)

    def _answer(self, link: PeerSocket, request: object, node: str) -> None:
        reply = self._reply(request, node)
        part = reply.payload
        try:
            sizes = [part.length_bytes] if isinstance(part, FileRange) else [memoryview(one).nbytes for one in part]
            answer = msgspec.structs.replace(reply.answer, payload_bytes=sum(sizes))
            deadline = time.monotonic() + payload_limit_s(ANSWER_LIMIT_S, sum(sizes))
            link.send(answer, deadline=deadline)
            if isinstance(part, FileRange):
                link.send_file(part.fd, part.offset_bytes, part.length_bytes, deadline=deadline)
            else:
                link.send_buffers(part, deadline=deadline)
            if sum(sizes):
                link.send(PayloadEnd(is_whole=reply.is_whole()), deadline=deadline)
        finally:
            if isinstance(part, FileRange):
                os.close(part.fd)

    def _reply(self, request: object, node: str) -> Reply:
        handler = self._handlers.get(type(request))
        try:
            if handler is None:
                raise Unavailable(f"request {type(request).__name__}: this node does not serve it", code="peer-request")
            return handler(request)
        except BehemothError as error:
            return Reply(answer=failed(error))
        except Exception as error:  # noqa: BLE001  # supervisor of a request: the peer must get an answer
            _log.exception("request %s of node %s failed", type(request).__name__, node)
            told = Internal(f"request {type(request).__name__}: {type(error).__name__}", code="peer-request")
            return Reply(answer=failed(told))
