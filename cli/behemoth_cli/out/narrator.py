"""Prints the progress of a long verb on a thread of its own, so that a blocked terminal never delays the work.

Lines are printed in order; of frames only the newest. What a blocked terminal does not take is dropped. The caller
makes the text, a painter prints it.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import Protocol

from behemoth_cli.out.console import Console
from behemoth_cli.out.frame import Frame

_MAX_WAITING = 10_000
_JOIN_LIMIT_S = 2.0


class Painter(Protocol):
    """How a narrator prints. Used on its thread only, between `begin` and `end`."""

    def begin(self) -> None: ...

    def line(self, text: str) -> None:
        """Print a line that stays on the screen."""
        ...

    def frame(self, frame: Frame) -> None:
        """Draw a frame in place of the last one."""
        ...

    def end(self) -> None: ...


class LinePainter:
    """For a pipe: lines to stderr, no frames."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self) -> None:
        """Nothing to prepare."""

    def line(self, text: str) -> None:
        self._console.note(text)

    def frame(self, frame: Frame) -> None:
        """Nothing: frames are for terminals."""

    def end(self) -> None:
        """Nothing to restore."""


class Narrator:
    """Owns the thread `narrator` from `start` to `close`."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._waiting: queue.Queue[str | Frame | None] = queue.Queue(_MAX_WAITING)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="narrator", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        self._put(text)

    def frame(self, frame: Frame) -> None:
        self._put(frame)

    def close(self) -> None:
        """Print what is left, for at most two seconds, and end the thread."""
        if self._thread is not None:
            self._put(None)
            self._thread.join(_JOIN_LIMIT_S)
            self._thread = None

    def _put(self, item: str | Frame | None) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(item)

    def _run(self) -> None:
        self._painter.begin()
        try:
            while self._paint(self._waiting.get()):
                pass
        finally:
            self._painter.end()

    def _paint(self, first: str | Frame | None) -> bool:
        """Print all that is queued; False at the end."""
        newest: Frame | None = None
        item: str | Frame | None = first
        is_open = True
        while is_open:
            if item is None:
                is_open = False
            elif isinstance(item, Frame):
                newest = item
            else:
                self._painter.line(item)
            if self._waiting.empty():
                break
            item = self._waiting.get_nowait()
        if newest is not None:
            self._painter.frame(newest)
        return is_open
