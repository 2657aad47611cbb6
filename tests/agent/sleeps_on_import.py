"""A preload that hangs the first time: somebody waits for a lock on a file system that is away."""

import os
import time
from pathlib import Path

MARK = Path(os.environ["SLEEPS_ON_IMPORT_MARK"])


def waits_for_a_lock() -> None:
    if not MARK.exists():
        MARK.touch()
        time.sleep(600)


waits_for_a_lock()
