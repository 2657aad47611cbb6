"""Calls a function on the event loop of a run from another thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def post(running: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Schedule `work` on the loop; does nothing when the loop has ended. Thread-safe."""
    with contextlib.suppress(RuntimeError):
        running.call_soon_threadsafe(work)
