"""The drain process as the leader sees it: started when it is needed, and again after it has ended.

Neighbours: `drainer`, which asks, and `process`, which answers.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

from behemoth.agent.child import Child
from behemoth.app.batches.messages import Failed
from behemoth.app.drains.messages import FROM_DRAIN, Drain, Drained, GiveWay, Settings, encoded, received, send
from behemoth.base.errors import Unavailable
from behemoth.state.effect import CommitRef


class ProcessLink:
    """A DrainLink. `drain` is called from one thread, which must live as long as the process shall: the kernel ends
    the process with it."""

    def __init__(self, settings: Settings, *, start: Callable[[], Child]) -> None:
        self._settings = settings
        self._start = start
        self._child: Child | None = None
        self._answers: Iterator[Drained | Failed] = iter(())
        self._is_closed = False
        self._is_saving = False
        self._lock = threading.Lock()

    def drain(self, commit: CommitRef) -> Drained:
        """See DrainLink."""
        try:
            child = self._running()
            send(child.sock, Drain(commit=commit))
            answer = next(self._answers, None)
        except OSError:
            answer = None
        if answer is None:
            self._end()
            raise Unavailable("drain process: expected it to answer, got its end", code="drain-process")
        if isinstance(answer, Failed):
            raise answer.error()
        return answer

    def give_way(self, is_saving: bool) -> None:
        """See DrainLink."""
        with self._lock:
            self._is_saving = is_saving
            if self._child is not None:
                self._tell(self._child)

    def close(self) -> None:
        """See DrainLink."""
        self._is_closed = True
        self._end()

    def _running(self) -> Child:
        with self._lock:
            if self._is_closed:
                raise Unavailable("drain process: expected it to run, got the end of the run", code="drain-process")
            if self._child is None:
                self._child = self._start()
                self._answers = received(self._child.sock, FROM_DRAIN)
                send(self._child.sock, self._settings)
                self._tell(self._child)
            return self._child

    def _tell(self, child: Child) -> None:
        """Never blocks: it is called from the coordinator's loop. A process that has left so much unread that this
        finds no room is stuck; it is ended, and `drain` sees that."""
        message = encoded(GiveWay(is_saving=self._is_saving))
        try:
            num_sent = child.sock.send(message, socket.MSG_DONTWAIT)
        except OSError:
            num_sent = 0
        if num_sent != len(message):
            child.end()

    def _end(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
