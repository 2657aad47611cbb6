"""How much memory of their own processes take while something runs: anonymous and shared pages, not the page cache.

A thread looks at /proc every few milliseconds, so a shorter peak goes unseen. Pages that two processes share count once
for each of them that mapped them anew, hence a shared segment that grows is counted in full.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

LOOK_S = 0.003
FIELDS = ("RssAnon:", "RssShmem:")
KIB = 1024


def own_bytes(pids: Iterable[int]) -> int:
    """Of these processes and all that they started."""
    return sum(_resident_bytes(pid) for each in pids for pid in _with_children(each))


def peak_growth_bytes(work: Callable[[], object], *, pids: Iterable[int] = ()) -> int:
    """How far this process and `pids` grew beyond what they had before, at the most, while `work` ran."""
    watched = {os.getpid(), *pids}
    before = own_bytes(watched)
    most = before
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(LOOK_S):
            most = max(most, own_bytes(watched))

    watcher = threading.Thread(target=look, name="resident")
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(most, own_bytes(watched)) - before


def _with_children(pid: int) -> set[int]:
    found = {pid}
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= _with_children(int(child))
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        pass
    return found


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * KIB for line in lines if line.startswith(FIELDS))
