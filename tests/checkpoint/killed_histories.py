"""Plays histories of `crash_script` on a directory in a process that is killed by a real SIGKILL, again and again.

    python killed_histories.py FOLDER SEED NUM_STRUCK

A program of its own, because it forks: each player is a child of a process with one thread. A player tells in a file,
before each call that writes, what it has been promised so far; whoever comes after the kill holds the store to the last
whole line, cleans up, and hands the same store to the next player. Goes on until NUM_STRUCK kills have struck in the
middle of a move, and prints that number. Ends with a trace when a promise was broken.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from behemoth.base.ids import Step, WriteId
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import FaultyStore
from checkpoint.crash_script import Book, Write, play, recover

MAX_MOVES = 1000
"""More than a player can make before it is killed."""
MAX_KILLS_PER_STRIKE = 4
LONGEST_S = 0.25
"""Of a player's life. A move takes some 10 ms, so that every kind of it is hit."""


class TellingStore(FaultyStore):
    """Tells the book before each call that writes."""

    def __init__(self, inner: LocalStore, tell: Callable[[], None]) -> None:
        super().__init__(inner)
        self._tell = tell

    def _write(self, whole: Callable[[], None], half: Callable[[], None]) -> None:
        self._tell()
        super()._write(whole, half)


def told(book: Book) -> bytes:
    """One line."""
    sets = (book.committed, book.maybe, book.given_up, book.pinned)
    return json.dumps([[sorted(one) for one in sets], book.num_writes_of_ids]).encode() + b"\n"


def heard(lines: bytes) -> Book:
    """The book of the last whole line; a kill may have torn one."""
    sets, number = json.loads(lines[: lines.rindex(b"\n")].splitlines()[-1])
    committed, maybe, given_up, pinned = ({_write(*one) for one in writes} for writes in sets)
    return Book(committed=committed, maybe=maybe, given_up=given_up, pinned=pinned, num_writes_of_ids=number)


def _write(step: int, write_id: str) -> Write:
    return Step(step), WriteId(write_id)


def main(folder: Path, seed: int, wanted: int) -> None:
    rng = random.Random(seed)
    book, num_struck = Book(), 0
    for kill in itertools.count():
        if num_struck == wanted:
            break
        if kill == MAX_KILLS_PER_STRIKE * wanted:
            sys.exit(f"of {kill} kills {num_struck} struck, expected {wanted}")
        lines = folder / f"book-{kill}"
        lines.write_bytes(told(book))
        of_player = seed * MAX_KILLS_PER_STRIKE * wanted + kill
        _kill_a_player(folder / "store", lines, seed=of_player, after_s=rng.uniform(0, LONGEST_S))
        num_struck += lines.read_bytes().count(b"\n") > 1
        book = heard(lines.read_bytes())
        _in_a_child(partial(_clean_up, folder / "store", lines, book))
        book = heard(lines.read_bytes())
        lines.unlink()
    sys.stdout.write(f"{num_struck}\n")


def _kill_a_player(store: Path, lines: Path, *, seed: int, after_s: float) -> None:
    """`after_s` counts from the player's first write."""
    began, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        _as_a_child(lambda: _be_a_player(store, lines, begin, seed))
    os.close(begin)
    select.select([began], [], [])  # readable at the first write, and at its end
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.close(began)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"a player ended by itself, with status {status}")


def _be_a_player(store: Path, lines: Path, begin: int, seed: int) -> None:
    book = heard(lines.read_bytes())
    out = os.open(lines, os.O_WRONLY | os.O_APPEND)

    def tell() -> None:
        os.write(out, told(book))
        os.write(begin, b".") if book.num_writes_of_ids else None

    play(TellingStore(LocalStore(store), tell), book, seed=seed, num_moves=MAX_MOVES)


def _clean_up(store: Path, lines: Path, book: Book) -> None:
    """What the next leader does; tells in `lines` what is there then."""
    local = LocalStore(store)
    recover(local, book)
    assert [name for name in local.leftovers() if name.startswith("steps/") or not name.endswith("/")] == []
    lines.write_bytes(told(book))


def _in_a_child(work: Callable[[], None]) -> None:
    """So that this process never has a second thread."""
    pid = os.fork()
    if pid == 0:
        _as_a_child(work)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        sys.exit(f"a promise was broken, see above (status {status})")


def _as_a_child(work: Callable[[], None]) -> None:
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001  # a forked child must never return into its parent's code
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
