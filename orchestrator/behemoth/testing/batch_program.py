"""A worker program whose jobs are the conformance suite's: `python -m behemoth.testing.batch_program`.

A batch says what it does: `double N`, `nap` (takes a moment), `fail`, `bug`, `die` (SIGKILL, whenever it runs),
`die-once` (the first time), `hold` (a large one, which goes on until it is told to give up).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from behemoth.app.batches.worker import serve, take_settings
from behemoth.base.errors import Conflict, Denied, Invalid

HOLD_LIMIT_S = 60.0


class SuiteWork:
    """The job is the path of a folder, in which each batch leaves a file for each time that it ran. One that is called
    `bug` cannot be opened."""

    def __init__(self, job: bytes) -> None:
        self._folder = Path(job.decode())
        self._stopped = threading.Event()
        if self._folder.name == "bug":
            raise ZeroDivisionError("a bug")
        if not self._folder.is_dir():
            raise Invalid(f"job: expected a folder, got {self._folder}", hint="make it", code="suite-job")

    def run(self, data: bytes) -> bytes:
        word, _, rest = data.decode().partition(" ")
        runs = len(list(self._folder.glob(f"{word}-{rest}.*")))
        (self._folder / f"{word}-{rest}.{runs}").touch()
        match word:
            case "double":
                return str(2 * int(rest)).encode()
            case "nap":
                time.sleep(0.05)
            case "fail":
                raise Denied("batch: expected a key, got none", hint="bring one", code="suite-denied")
            case "hold":
                if self._stopped.wait(HOLD_LIMIT_S):
                    (self._folder / "hold-gave-up").touch()
                    raise Conflict("batch: cancelled", code="cancelled")
            case "bug":
                raise ZeroDivisionError("a bug")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die-once" if not runs:
                os.kill(os.getpid(), signal.SIGKILL)
        return b"alive"

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        """Says that the job is over."""
        (self._folder / "closed").touch()


def main() -> int:
    serve(take_settings(os.environ), open_work=SuiteWork)
    return 0


if __name__ == "__main__":
    sys.exit(main())
