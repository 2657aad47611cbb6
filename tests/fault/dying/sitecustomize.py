"""Lets one process of a run die at one system call: every Python below a test with this folder first imports it.

BEHEMOTH_DIE is `ROLE CALL NUMBER MODE MARKER`: the process of that role kills itself at its NUMBER-th `os.CALL`,
`before` it, `half` way through it (writes only), or `after` it. A marker file sees to it that it happens once.
"""

import os
import signal
import sys


def role() -> str:
    words = " ".join(sys.orig_argv)
    for module, name in (("wiring.agent", "agent"), ("wiring.store", "store"), ("wiring.worker", "forkserver")):
        if module in words:
            return name
    return "run" if "/behemoth run " in words else "other"


def die(marker: str) -> None:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def arm(call: str, number: int, mode: str, marker: str) -> None:
    real, count = getattr(os, call), 0

    def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count != number or os.path.exists(marker):
            return real(*args, **kwargs)
        if mode == "half":
            half(real, *args, **kwargs)  # type: ignore[no-untyped-call]
        if mode == "after":
            real(*args, **kwargs)
        die(marker)
        return real(*args, **kwargs)

    setattr(os, call, wrapped)


def half(real, fd, data, *args):  # type: ignore[no-untyped-def]
    """The first half of what `os.write` or `os.pwritev` was to write."""
    if isinstance(data, (list, tuple)):
        data = [memoryview(data[0]).cast("B")[: memoryview(data[0]).nbytes // 2]]
    else:
        data = memoryview(data)[: len(data) // 2]
    real(fd, data, *args)


plan = os.environ.get("BEHEMOTH_DIE", "").split()
if plan and plan[0] == role():
    arm(plan[1], int(plan[2]), plan[3], plan[4])
