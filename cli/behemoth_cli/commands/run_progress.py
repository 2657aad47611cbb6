"""Shows the progress of `behemoth run` on stderr: lines on a pipe, a live view on a terminal, and the library's log.

Nothing here knows how a run is started or ends; the neighbour `run` does.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator

from behemoth.app.events import Event
from behemoth.wiring.run import LocalRun
from behemoth_cli.context import Context
from behemoth_cli.out.console import Console
from behemoth_cli.out.narrator import LinePainter, Narrator, Painter
from behemoth_cli.views.events import event_line
from behemoth_cli.views.live import MAX_EVENTS, Pace, live_frame, paced

_FORCED = "something does not answer, probably the store: left without waiting; the same command resumes the run"


class RunProgress:
    """Turns events and snapshots of a run into lines and frames. Used on the run's event loop, but for `forced`."""

    def __init__(self, narrator: Narrator, console: Console) -> None:
        self._narrator = narrator
        self._console = console
        self._is_live = console.is_error_terminal
        self._events: deque[Event] = deque(maxlen=4 * MAX_EVENTS)
        self._pace = Pace()
        self._local: LocalRun | None = None

    def watch(self, local: LocalRun) -> None:
        """Set the run whose events will come; call it before the first one."""
        self._local = local

    def event(self, event: Event) -> None:
        self._events.append(event)
        if not self._is_live:
            snapshot = self._local.snapshot() if event.reason == "Committed" and self._local is not None else None
            self._narrator.line(event_line(event, snapshot.vitals if snapshot is not None else None))

    def phase(self, text: str) -> None:
        self._narrator.line(f"{text} ...")

    def note(self, text: str) -> None:
        self._narrator.line(text)

    def forced(self) -> None:
        """Print the last line before a forced exit. May be called on another thread."""
        self._narrator.line(_FORCED)
        self._narrator.close()

    def look(self, local: LocalRun) -> None:
        """Redraw the live view, on a terminal."""
        snapshot = local.snapshot() if self._is_live else None
        if snapshot is not None:
            self._pace = paced(self._pace, snapshot)
            self._narrator.frame(live_frame(snapshot, self._pace, list(self._events), width=self._console.width))


@contextlib.contextmanager
def narrated(context: Context) -> Iterator[Narrator]:
    """A narrator for stderr, which the library's log goes through too, during the block."""
    narrator = Narrator(_painter(context.console))
    handler = _NarratorHandler(narrator)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
    handler.setLevel(logging.INFO if context.is_verbose else logging.WARNING)
    logger = logging.getLogger("behemoth")
    logger.addHandler(handler)
    narrator.start()
    try:
        yield narrator
    finally:
        narrator.close()
        logger.removeHandler(handler)


class _NarratorHandler(logging.Handler):
    def __init__(self, narrator: Narrator) -> None:
        super().__init__()
        self._narrator = narrator

    def emit(self, record: logging.LogRecord) -> None:
        self._narrator.line(self.format(record))


def _painter(console: Console) -> Painter:
    if not console.is_error_terminal:
        return LinePainter(console)
    from behemoth_cli.out.live import LivePainter  # rich is for terminals only

    return LivePainter(console.stderr, color=console.has_error_color)
