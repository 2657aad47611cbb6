"""Keeps clean-ups out of a store of files while a save goes on, and lets them in when it ends, however that comes.

The coordinator holds the lock from its plan to its commit. A save that fails on another rank ends without a word to
its writer, in a program that trains on for hours: so a thread looks once a second whether it still goes on. A
coordinator that is killed loses the lock to the kernel. Neighbours: `going_on`, `behemoth.app.import_lock`.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from behemoth.app.import_lock import importing
from behemoth.dcp.going_on import GoingOn

LOOK_S = 1.0


class SaveLock:
    """Taken and let go by one thread at a time; one save at a time. Owns its thread, which ends when it is let go."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[SaveLock], tuple[()]]:
        """A copy in another process holds nothing."""
        return SaveLock, ()

    def take(self, folder: Path, save: GoingOn) -> None:
        """Raises Conflict while somebody clears the store."""
        self._held.enter_context(importing(folder))
        if save.is_told:
            self._ended.clear()
            watch = threading.Thread(target=self._let_go_after, args=(save,), name="dcp-save-lock", daemon=True)
            watch.start()
            self._watch = watch

    def let_go(self) -> None:
        """Does nothing where it is not held."""
        if self._watch is not None:
            self._ended.set()
            self._watch.join()
            self._watch = None
        self._held.close()

    def _let_go_after(self, save: GoingOn) -> None:
        while not self._ended.wait(LOOK_S) and not save.is_over():
            pass
        self._held.close()  # here too when it is let go: whoever waits for that may be interrupted
