"""The option --rate of verbs that read at a limited rate, and how Ctrl-C interrupts their waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from behemoth.base.units import parse_rate


def rate_of(text: str, *, without: str) -> int:
    """Bytes a second, from `--rate`. `without`: what its absence means, which may be what a rate of 0 was to say."""
    return parse_rate(text, name="option --rate", hint=f"for example 500MB; without the option {without}")


@contextmanager
def stopped_by_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets before it interrupts: threads that wait for their turn to read must end at once."""
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.default_int_handler(number, frame)

    former = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, former)
