"""News from another thread to the event loop of a run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def post(running: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """From another thread; a loop that has ended needs no news."""
    with contextlib.suppress(RuntimeError):
        running.call_soon_threadsafe(work)
