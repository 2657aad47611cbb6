"""The option --rate of verbs that read at a limited rate, and how Ctrl-C interrupts their waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from behemoth.base.errors import Invalid
from behemoth.base.units import parse_size


def rate_of(text: str) -> int:
    """Bytes a second, from `--rate`."""
    bytes_per_s = parse_size(text, name="option --rate")
    if bytes_per_s < 1:
        raise Invalid(
            f"option --rate: expected at least 1B, got {text!r}", hint="for example 200MiB", code="out-of-range"
        )
    return bytes_per_s


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
