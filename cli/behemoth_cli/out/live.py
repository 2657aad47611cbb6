"""A frame on a terminal that is redrawn in place, with the lines of what happened scrolling above it.

Draws on stderr, since stdout is data. Used by one thread, that of the narrator. Rich makes the styles; where the frame
is, this file knows by itself: when a terminal gets narrower, it wraps what was painted, and the frame has more rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from rich.cells import chop_cells
from rich.console import Console
from rich.text import Text

from behemoth_cli.out.frame import Frame, Line, Style

_STYLES: dict[Style, str] = {
    "": "",
    "bold": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "spare": "cyan",
}
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class LivePainter:
    """`size` returns the present columns and rows of the terminal."""

    def __init__(self, stream: TextIO, *, color: bool, size: Callable[[], os.terminal_size] | None = None) -> None:
        self._stream = stream
        self._color = color
        self._size = size if size is not None else lambda: _size_of(stream)
        self._frame = Frame(lines=())
        self._painted: Sequence[str] = ()
        """The lines that stand on the screen, the cursor at the beginning of the line below them."""

    def begin(self) -> None:
        self._put(_HIDE_CURSOR)

    def line(self, text: str) -> None:
        self._redraw(f"{text}\n")

    def frame(self, frame: Frame) -> None:
        self._frame = frame
        self._redraw("")

    def end(self) -> None:
        self._put(_SHOW_CURSOR)

    def _redraw(self, above: str) -> None:
        """Redraw the frame with one write, so that no partial frame is seen."""
        columns, rows = self._size()
        lines = [_fitted(line, columns) for line in self._frame.lines[: max(1, rows - 1)]]
        erased = _erased(sum(_num_rows(text, columns) for text in self._painted))
        self._painted = [text.plain for text in lines]
        self._put(erased + above + self._styled(lines, columns))

    def _styled(self, lines: Sequence[Text], columns: int) -> str:
        console = Console(
            file=self._stream,
            force_terminal=True,
            no_color=not self._color,
            width=columns,
            highlight=False,
            markup=False,
            emoji=False,
        )
        with console.capture() as captured:
            for text in lines:
                console.print(text)
        return captured.get()

    def _put(self, text: str) -> None:
        """Write to the terminal. A terminal that is gone ends the view, not the run."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _fitted(line: Line, columns: int) -> Text:
    """A line cut to the terminal's width, without trailing blanks: terminals differ in whether these wrap."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for span in line:
        text.append(span.text, style=_STYLES[span.style])
    text.truncate(max(1, columns - 1), overflow="ellipsis")
    text.rstrip()
    return text


def _num_rows(text: str, columns: int) -> int:
    """Number of rows that a line takes on a terminal that has become narrower and wraps it."""
    return max(1, len(chop_cells(text, columns)))


def _erased(num_rows: int) -> str:
    """Back to the first row of the frame, row by row: to erase a whole screen at once makes terminals keep a copy of it
    in their history."""
    return "\r" + "\x1b[A\x1b[2K" * num_rows


def _size_of(stream: TextIO) -> os.terminal_size:
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return os.terminal_size((columns or 80, rows or 24))
