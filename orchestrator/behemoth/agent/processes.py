"""What Linux offers against orphans: parent-death signals, sub-reapers, and the list of one's own children.

Nothing here kills by name or by a number that might have been given to somebody else: a process group is only
signalled while its leader has not been reaped, a stray only while it is our child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection
from pathlib import Path

from behemoth.base.errors import Internal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
# Loaded before any fork: a forked child calls it at once.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int, *, parent: int) -> None:
    """Let the kernel send `signum` to this process when the thread that created it ends. `parent` is the pid that it
    was created by: if that is gone already the signal would never come, so this process ends now."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def name_process(title: str) -> None:
    """Show this process under `title` in process listings; the kernel keeps 15 bytes."""
    _LIBC.prctl(_PR_SET_NAME, ctypes.c_char_p(title.encode()), 0, 0, 0)


def children() -> set[int]:
    """Pids of this process's children, zombies included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


def kill_group(leader: int) -> None:
    """SIGKILL to the process group of a leader that this process has not reaped; missing ones are fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_strays(keep: Collection[int]) -> int:
    """SIGKILL to every child that is not in `keep`; reaps those that have ended. Returns how many are left.

    Looks again after it has reaped: who dies hands its own children over to us.
    """
    while strays := children().difference(keep):
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = sum(not _is_reaped(pid) for pid in strays)
        if left:
            return left
    return 0


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise Internal(f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")
