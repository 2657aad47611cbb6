"""Which process of this machine has the other end of a connection. Linux only (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_LOCAL, _INODE = 1, 9
"""Columns of /proc/net/tcp."""


def asker(port: int, pids: Iterable[int]) -> int | None:
    """Of these processes the one whose connection begins at `port` of 127.0.0.1; None when it has ended."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    return next((pid for pid in pids if wanted & _files(pid)), None)


def _inodes(port: int) -> set[str]:
    rows = [line.split() for line in (_PROC / "net" / "tcp").read_text().splitlines()[1:]]
    return {row[_INODE] for row in rows if row[_LOCAL].endswith(f":{port:04X}")}


def _files(pid: int) -> set[str]:
    """What its descriptors stand for."""
    found = set()
    try:
        for link in (_PROC / str(pid) / "fd").iterdir():
            found.add(os.readlink(link))
    except OSError:  # it has ended, or has closed one meanwhile
        pass
    return found
