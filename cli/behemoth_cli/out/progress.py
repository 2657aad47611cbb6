"""Progress of work with a known size: one line that is redrawn on a terminal, one line a phase elsewhere.

Silent for the first second, and used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from behemoth_cli.out.console import Console

_SILENT_S = 1.0
_REDRAW_S = 0.2


class Progress:
    """`describe(done, total, seconds)` makes the text."""

    def __init__(self, console: Console, describe: Callable[[int, int, float], str]) -> None:
        self._console = console
        self._describe = describe
        self._began_s = time.monotonic()
        self._drawn_s = self._began_s
        self._is_drawn = False

    def update(self, done: int, total: int) -> None:
        """Draw if it is time to."""
        now_s = time.monotonic()
        if now_s - self._began_s < _SILENT_S or now_s - self._drawn_s < _REDRAW_S:
            return
        text = self._describe(done, total, now_s - self._began_s)
        if self._console.is_error_terminal:
            self._drawn_s, self._is_drawn = now_s, True
            self._console.draw(f"\r\x1b[K{text[: self._console.width - 1]}")
        elif not self._is_drawn:
            self._is_drawn = True
            self._console.note(text)

    def close(self) -> None:
        """Leave a clean line behind."""
        if self._is_drawn and self._console.is_error_terminal:
            self._console.draw("\r\x1b[K")
