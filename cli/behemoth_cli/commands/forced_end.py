"""The end of `behemoth run` that nothing can delay: a second Ctrl-C stops at once, even while a store hangs.

A call into a store that hangs cannot be interrupted, and Python would wait for its thread. So the process exits without
that: agents and Ray are tied to this process and end with it, and the run directory is as after SIGKILL: resumable.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from behemoth_cli.exits import Exit

AT_ONCE_LIMIT_S = 10.0
"""How long stopping at once may take before the process exits by force: shutting Ray down takes some seconds."""


@contextlib.contextmanager
def forced_end(tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Yields a function that starts the limit when it is first called; when the limit is over, and the block has not
    been left, `tell` is called and the process exits."""
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
