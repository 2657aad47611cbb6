"""The client of other nodes: connections are opened on demand and kept for later requests.

A question is bounded in time, whatever the other end does, and any error is Behemoth's: the caller looks elsewhere. The
neighbour is `server`, the other end.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from behemoth.agent.peers.identity import SILENT, UNREACHABLE, PeerAddress, PeerIdentity, enter
from behemoth.agent.peers.sockets import LATE, PeerSocket, connect, payload_limit_s
from behemoth.base.errors import BehemothError, Conflict, Corrupt, Timeout, Unavailable
from behemoth.wire.peers import (
    MAX_PEER_FRAME_BYTES,
    PAYLOAD_ENDS,
    PEER_ANSWERS,
    PEER_BUSY,
    PayloadEnd,
    PeerAnswer,
    PeerFailed,
    PeerRequest,
    error_of,
)

CONNECT_LIMIT_S = 5.0
HANDSHAKE_LIMIT_S = 10.0
"""A store process that has just died has a successor that accepts within this time."""
SILENCE_S = 1.0
"""A node that has a store process greets within milliseconds. One that has not for so long has none, or it is frozen,
or something swallows what is sent to it."""
ANSWER_LIMIT_S = 30.0
STALL_S = 10.0
"""Within an answer. A node sends what it has in memory: one that says nothing for so long is frozen or cut off, and a
payload may take minutes by its size."""
BUSY_PAUSE_S = 0.2
"""At most, before a node that answers too many others is asked again."""
MAX_IDLE = 64
"""Connections that are kept open between questions."""

A = TypeVar("A")


class PeerClient:
    """Thread-safe: each question has a connection to itself."""

    def __init__(self, me: PeerIdentity, *, answer_limit_s: float = ANSWER_LIMIT_S) -> None:
        self._me = me
        self._answer_limit_s = answer_limit_s
        self._lock = threading.Lock()
        self._idle: list[tuple[PeerAddress, PeerSocket]] = []  # the longest idle first

    def ask(
        self,
        peer: PeerAddress,
        request: PeerRequest,
        answer_type: type[A],
        *,
        into: memoryview | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        is_patient: bool = True,
    ) -> A:
        """The answer, with its payload in `into`, which it must fill exactly. Raises the error that the node told, or
        Unavailable, Timeout, Corrupt; Conflict when the payload changed while it was sent. After an error `into` may
        hold anything, and nobody writes to it any more. A node that answers too many others is asked again until
        the limit of an answer is over. `cancelled` ends each wait with Conflict, or with an error of its own; a Timeout
        has the code SILENT where the node had SILENCE_S to greet, or to go on with an answer, and did not. Without
        `is_patient` it has no longer to greet."""
        patience_ends_s = time.monotonic() + self._answer_limit_s
        while _is_busy(answer := self._asked(peer, request, into, cancelled, is_patient)):
            if time.monotonic() >= patience_ends_s:
                break
            if cancelled():
                raise Conflict(f"node {peer.node}: given up while it was busy", code="cancelled")
            time.sleep(random.uniform(0, BUSY_PAUSE_S))
        if isinstance(answer, PeerFailed):
            raise error_of(answer, peer.node)
        if not isinstance(answer, answer_type):
            raise Corrupt(f"node {peer.node}: expected {answer_type.__name__}, got {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """Close what is idle."""
        self._forget(lambda _: True)

    def _asked(
        self,
        peer: PeerAddress,
        request: PeerRequest,
        into: memoryview | None,
        cancelled: Callable[[], bool],
        is_patient: bool,
    ) -> PeerAnswer:
        link = self._take(peer)
        if link is not None:
            try:
                return self._exchange(peer, link, request, into, cancelled)
            except Unavailable:  # the node closed what was idle, or has a new store process
                self._forget(lambda known: known == peer)
            except Timeout:  # or it is frozen, in which case the others would wait as long
                self._forget(lambda known: known == peer)
                raise
        return self._exchange(peer, self._connect(peer, cancelled, is_patient), request, into, cancelled)

    def _exchange(
        self,
        peer: PeerAddress,
        link: PeerSocket,
        request: PeerRequest,
        into: memoryview | None,
        cancelled: Callable[[], bool],
    ) -> PeerAnswer:
        """One question; afterwards the connection is idle, or closed with the error."""
        with _ending(link, peer):
            answer = self._answer(link, request, into, cancelled)
        if _is_busy(answer):
            link.close()
        else:
            self._keep(peer, link)
        return answer

    def _answer(
        self, link: PeerSocket, request: PeerRequest, into: memoryview | None, cancelled: Callable[[], bool]
    ) -> PeerAnswer:
        wanted = into.nbytes if into is not None else 0
        deadline = time.monotonic() + payload_limit_s(self._answer_limit_s, wanted)
        link.send(request, deadline=deadline)
        link.until_readable(deadline=deadline, cancelled=cancelled)
        try:
            return self._received(link, into, wanted, deadline=deadline, cancelled=cancelled)
        except Timeout as error:
            silent_s = time.monotonic() - link.heard_s
            if silent_s < SILENCE_S:
                raise  # the node is only slow, or who asks had no time left, which says nothing of it
            message = f"answer: expected the rest of it, got nothing for {silent_s:.1f} s"
            raise Timeout(message, code=SILENT) from error

    def _received(
        self,
        link: PeerSocket,
        into: memoryview | None,
        wanted: int,
        *,
        deadline: float,
        cancelled: Callable[[], bool],
    ) -> PeerAnswer:
        limit_bytes, silence_s = MAX_PEER_FRAME_BYTES, STALL_S
        answer: PeerAnswer = link.receive(
            PEER_ANSWERS, limit_bytes=limit_bytes, deadline=deadline, silence_s=silence_s, cancelled=cancelled
        )
        if isinstance(answer, PeerFailed) and answer.payload_bytes == 0:
            return answer
        if answer.payload_bytes != wanted:
            raise Corrupt(
                f"answer {type(answer).__name__}: expected {wanted} bytes behind it, got {answer.payload_bytes}",
                code="peer-payload",
            )
        if into is not None and wanted:
            link.receive_into(into.cast("B"), deadline=deadline, silence_s=silence_s, cancelled=cancelled)
            end: PayloadEnd = link.receive(
                PAYLOAD_ENDS, limit_bytes=limit_bytes, deadline=deadline, silence_s=silence_s, cancelled=cancelled
            )
            if not end.is_whole:
                raise Conflict("answer: what was asked for was replaced while it was sent", code="peer-replaced")
        return answer

    def _connect(self, peer: PeerAddress, cancelled: Callable[[], bool], is_patient: bool) -> PeerSocket:
        began_s = time.monotonic()
        try:
            return self._greeted(peer, cancelled, is_patient)
        except Timeout as error:
            if error.code != LATE and time.monotonic() - began_s < SILENCE_S:
                raise  # who asks had no time left, which says nothing of the node
            message = f"node {peer.node}: expected a greeting from {peer.host}:{peer.port}, got none in time"
            raise Timeout(message, code=SILENT) from error

    def _greeted(self, peer: PeerAddress, cancelled: Callable[[], bool], is_patient: bool) -> PeerSocket:
        connect_s, greet_s = (CONNECT_LIMIT_S, HANDSHAKE_LIMIT_S) if is_patient else (SILENCE_S, SILENCE_S)
        try:
            link = connect(peer.host, peer.port, limit_s=connect_s, cancelled=cancelled)
        except Timeout:
            raise
        except OSError as error:
            raise Unavailable(
                f"node {peer.node}: expected a connection to {peer.host}:{peer.port}, got: {error.strerror or error}",
                code=UNREACHABLE,
            ) from error
        with _ending(link, peer):
            deadline = time.monotonic() + greet_s
            link.until_readable(deadline=deadline, cancelled=cancelled)
            enter(link, self._me, peer.node, deadline=deadline)
        return link

    def _take(self, peer: PeerAddress) -> PeerSocket | None:
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index][0] == peer:
                    return self._idle.pop(index)[1]
        return None

    def _keep(self, peer: PeerAddress, link: PeerSocket) -> None:
        with self._lock:
            self._idle.append((peer, link))
            surplus = self._idle[:-MAX_IDLE]
            self._idle = self._idle[-MAX_IDLE:]
        for _, old in surplus:
            old.close()

    def _forget(self, is_unwanted: Callable[[PeerAddress], bool]) -> None:
        with self._lock:
            gone = [link for peer, link in self._idle if is_unwanted(peer)]
            self._idle = [(peer, link) for peer, link in self._idle if not is_unwanted(peer)]
        for link in gone:
            link.close()


@contextmanager
def _ending(link: PeerSocket, peer: PeerAddress) -> Iterator[None]:
    """An error inside ends the connection, and says whose it was."""
    try:
        yield
    except BehemothError as error:
        link.close()
        raise error.within(f"node {peer.node}") from error
    except BaseException:
        link.close()
        raise


def _is_busy(answer: PeerAnswer) -> bool:
    """Whether a node only says that it cannot answer now."""
    return isinstance(answer, PeerFailed) and answer.code == PEER_BUSY
