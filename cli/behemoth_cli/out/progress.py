"""Progress of work with a known size: one line that is redrawn on a terminal, a line a minute elsewhere.

Silent for the first second, and used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from behemoth_cli.out.console import Console

_SILENT_S = 1.0
_REDRAW_S = 0.2
_REPEAT_S = 60.0


class Done(NamedTuple):
    """Progress of the work. `before`: the progress at the first update, `elapsed_s` ago, which an earlier call had made
    and which does not count for the rate."""

    done: int
    total: int
    before: int
    elapsed_s: float


class Progress:
    """`describe` makes the text."""

    def __init__(self, console: Console, describe: Callable[[Done], str]) -> None:
        self._console = console
        self._describe = describe
        self._silent_until_s = time.monotonic() + _SILENT_S
        self._first: tuple[int, float] | None = None
        self._drawn_s: float | None = None

    def update(self, done: int, total: int) -> None:
        """Redraw, if enough time has passed."""
        now_s = time.monotonic()
        if self._first is None:
            self._first = done, now_s
            return
        pause_s = _REDRAW_S if self._console.is_error_terminal else _REPEAT_S
        if now_s < self._silent_until_s or (self._drawn_s is not None and now_s - self._drawn_s < pause_s):
            return
        self._drawn_s = now_s
        before, first_s = self._first
        text = self._describe(Done(done, total, before, now_s - first_s))
        if self._console.is_error_terminal:
            self._console.draw(f"\r\x1b[K{text[: self._console.width - 1]}")
        else:
            self._console.note(text)

    def close(self) -> None:
        """End the line."""
        if self._drawn_s is not None and self._console.is_error_terminal:
            self._console.draw("\r\x1b[K")
