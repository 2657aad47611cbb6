"""A frame on a terminal that is redrawn in place, with the lines of what happened scrolling above it.

Draws on stderr, since stdout is data. Used by one thread, that of the narrator.
"""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from behemoth_cli.out.frame import Frame, Style

_STYLES: dict[Style, str] = {
    "": "",
    "bold": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
    "spare": "cyan",
}


class LivePainter:
    """Opens its screen in `begin`."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._stream = stream
        self._color = color
        self._live: Live | None = None

    def begin(self) -> None:
        console = Console(
            file=self._stream,
            force_terminal=True,
            no_color=not self._color,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def line(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(Text(text))

    def frame(self, frame: Frame) -> None:
        if self._live is not None:
            self._live.update(_rendered(frame), refresh=True)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _rendered(frame: Frame) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(frame.lines):
        if number:
            text.append("\n")
        for span in line:
            text.append(span.text, style=_STYLES[span.style])
    return text
