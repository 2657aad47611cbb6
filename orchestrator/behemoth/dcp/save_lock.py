"""Keeps gc out of a store of files while a DCP save goes on.

The coordinator holds the lock from its plan to its commit. DCP does not tell its writer when the save fails on another
rank, and the program may train on for hours: so a thread checks once a second whether the save still goes on. When the
coordinator is killed, the kernel releases the lock. Neighbours: `save_call`, `behemoth.app.import_lock`.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from behemoth.app.import_lock import importing
from behemoth.dcp.save_call import SaveCall

LOOK_S = 1.0
"""Interval of the check whether the save goes on."""


class SaveLock:
    """For one save at a time. Owns a thread, which ends when the lock is released. Not thread-safe."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[SaveLock], tuple[()]]:
        """Copied to another process, it is a lock that is not held."""
        return SaveLock, ()

    def take(self, folder: Path, save: SaveCall) -> None:
        """Take the lock, until `let_go` or the end of `save`. Raises Conflict while a gc runs there."""
        self._held.enter_context(importing(folder))
        if save.is_found:
            self._ended.clear()
            watch = threading.Thread(target=self._let_go_after, args=(save,), name="dcp-save-lock", daemon=True)
            watch.start()
            self._watch = watch

    def let_go(self) -> None:
        """Release the lock. Idempotent."""
        if self._watch is not None:
            self._ended.set()
            self._watch.join()
            self._watch = None
        self._held.close()

    def _let_go_after(self, save: SaveCall) -> None:
        while not self._ended.wait(LOOK_S) and not save.is_over():
            pass
        self._held.close()  # here too after `let_go`, whose caller may be interrupted in `join`
