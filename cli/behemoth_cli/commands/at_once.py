"""The end of `behemoth run` that nothing can hold up: a second Ctrl-C stops at once, whatever a store does.

A call into a store that hangs cannot be ended, and its thread would be waited for. What is left then is to leave:
agents and Ray are tied to this process and end with it, and the run directory is as after SIGKILL: resumable.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from behemoth_cli.exits import Exit

AT_ONCE_LIMIT_S = 10.0
"""How long stopping at once may take before it is left to the operating system: ending a Ray takes some seconds."""


@contextlib.contextmanager
def forced_end(tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Gives what begins the limit, once; after it `tell` is called and the process ends, unless the block has been left
    before."""
    timer = threading.Timer(AT_ONCE_LIMIT_S, _leave, (tell,))
    timer.name, timer.daemon = "forced-end", True

    def begin() -> None:
        if timer.ident is None:
            timer.start()

    try:
        yield begin
    finally:
        timer.cancel()


def _leave(tell: Callable[[], None]) -> None:
    try:
        tell()
    finally:
        os._exit(Exit.INTERRUPTED)
