"""What a run left behind on this machine although it has ended: processes, memory, half-written files.

A process is known by a mark in the environment that its first ancestor was started with: everything below inherits it,
so even one that changed its session, its name and its parent is found, Ray's included. Nothing here signals anything,
and nothing looks for a process by its name. Linux only (proc(5)).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MARK_VARIABLE = "BEHEMOTH_TEST_MARK"
"""Set it to a value of one's own in the environment of what is started."""

Role = Literal["run", "keeper", "agent", "forkserver", "worker", "store", "drain", "ray", "other"]

_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_WORKER_NAME = re.compile(rb"rank-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A live process, told by what it executes. `parent` is its parent's pid at the time of the look."""

    pid: int
    role: Role
    parent: int
    command: str


def processes(mark: str) -> list[Found]:
    """Every live process below whatever was started with `mark`, in order of pids; zombies are none."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    pids = sorted(int(entry) for entry in os.listdir(_PROC) if entry.isdigit())
    marked = (pid for pid in pids if wanted in _read(pid, "environ").split(b"\0"))
    return [found for pid in marked if (found := _look(pid)) is not None]


def shared_memory() -> set[str]:
    """Names below /dev/shm that no live process has open or mapped: nobody will ever remove them."""
    names = {str(path) for path in _SHARED_MEMORY.rglob("*") if path.is_file()}
    return names - _held(names) if names else names


def half_written(run_directory: Path, store: Path) -> list[str]:
    """What writes that were cut off left: temporary files of the run directory and of its store, folders of writes that
    have no commit, empty folders, markers of rejected commits whose record still stands. Only once nobody writes any
    more. It looks at names alone and shares no code with the clean-up that it judges."""
    committed = {_named_by(record) for record in (store / "commits").glob("*.json")}
    writes = {path.name: path for path in (store / "steps").glob("*")}
    found = [path for name, path in writes.items() if name not in committed]
    found += [path for path in (store / "rejected").glob("*.json") if path.stem in committed]
    places = (run_directory, store)
    found += [path for place in places for path in place.rglob("*") if _is_temporary(path.name)]
    found += [path for path in (store / "steps").rglob("*") if path.is_dir() and not any(path.iterdir())]
    return sorted({str(path) for path in found})


def _named_by(record: Path) -> str:
    """The folder of the write that a commit names; nothing for a record that cannot be read."""
    try:
        write_id = json.loads(record.read_bytes())["record"]["write_id"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f"{record.stem}-{write_id}"


def _is_temporary(name: str) -> bool:
    return name.endswith(".new") or name.startswith(".behemoth-")


def _look(pid: int) -> Found | None:
    """None when it has ended meanwhile."""
    stat = _read(pid, "stat").rpartition(b")")[2].split()
    words = _read(pid, "cmdline").split(b"\0")
    if not stat or stat[0] == b"Z" or not words[0]:
        return None
    command = b" ".join(words).decode(errors="replace").strip()
    return Found(pid=pid, role=_role(words, _read(pid, "comm").strip()), parent=int(stat[1]), command=command[:200])


def _role(words: Sequence[bytes], name: bytes) -> Role:
    if _WORKER_NAME.fullmatch(name):
        return "worker"
    if any(word.endswith(b"rayrt/keeper.py") for word in words):
        return "keeper"
    for module, role in _MODULES.items():
        if module in words:
            return role
    if any(b"/ray/" in word or word.startswith(b"ray::") for word in words):
        return "ray"
    return "run" if any(word.endswith(b"/behemoth") for word in words[:2]) else "other"


_MODULES: dict[bytes, Role] = {
    b"behemoth.wiring.agent": "agent",
    b"behemoth.wiring.store": "store",
    b"behemoth.wiring.drain": "drain",
    b"behemoth.wiring.worker": "forkserver",
}


def _held(names: set[str]) -> set[str]:
    """Those of `names` that some process has open or mapped."""
    held: set[str] = set()
    for pid in (int(entry) for entry in os.listdir(_PROC) if entry.isdigit()):
        held.update(names.intersection(_open_files(pid)))
        mapped = _read(pid, "maps").decode(errors="replace")
        held.update(name for name in names - held if name in mapped)
    return held


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.listdir(_PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                yield str((_PROC / str(pid) / "fd" / entry).readlink())


def _read(pid: int, name: str) -> bytes:
    """Empty when the process is gone or not ours."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / name).read_bytes()
    return b""
