"""The end of a worker: what Python does when a program ends, except for the finalization of the interpreter.

During finalization libraries print (nanobind its leaks), and the last line of a worker is taken for the reason of its
end. So threads are waited for, exit handlers run, and files are written and closed as their objects would have done;
then the process is gone. The neighbour is `worker`, which calls the program.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import io
import os
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from typing import NoReturn

FAILED_LIMIT_S = 10
"""How long threads and exit handlers of a program that failed may take: its peers wait for the reason."""

NATIVE_LIMIT_S = 5
"""How much longer until what hangs in native code is ended, with its stacks in the log."""

_FLUSHED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
"""File types in the order in which they are flushed: text files write into buffered ones."""


def leave(code: int) -> NoReturn:
    """End this process with the exit code that the program came to. Blocks for the threads that it left running, as in
    any Python program; after a failure, for `FAILED_LIMIT_S` at most."""
    if code != 0:
        signal.signal(signal.SIGALRM, lambda _number, _frame: _exit(code))
        signal.alarm(FAILED_LIMIT_S)
        # An exit handler that hangs in native code lets no handler of a signal run: this needs no interpreter.
        faulthandler.dump_traceback_later(FAILED_LIMIT_S + NATIVE_LIMIT_S, exit=True, file=sys.stderr)
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # with the hooks that end the threads of idle pools
        atexit._run_exitfuncs()
    finally:
        _exit(code)


def _exit(code: int) -> NoReturn:
    try:
        _finish_files()
    finally:
        os._exit(code & 0xFF)


def _finish_files() -> None:
    """Standard output and error, and every file that the program left open, those that were opened while modules were
    imported too: the fork server had frozen these."""
    gc.unfreeze()
    left = gc.get_objects()
    _flush(left)
    for one in left:
        if _ends_in_del(type(one)):
            with contextlib.suppress(Exception):  # closed, or its disk is full: Python would only print that
                one.close()
    _flush(left)  # what the others wrote at their end


def _flush(left: Iterable[object]) -> None:
    files = [one for one in left if type(one) in _FLUSHED]
    for kind in _FLUSHED:
        for file in [sys.stdout, sys.stderr, *(one for one in files if type(one) is kind)]:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or replaced by something else
                file.flush()


def _ends_in_del(kind: type) -> bool:
    """Whether objects of this kind write or remove something when they go: compressed files, archives, temporary
    files. Files of `io` itself have nothing to do but to be flushed."""
    if issubclass(kind, (zipfile.ZipFile, tempfile._TemporaryFileCloser)):  # type: ignore[attr-defined]
        return True
    return issubclass(kind, io.IOBase) and kind.__module__ not in ("_io", "io")
