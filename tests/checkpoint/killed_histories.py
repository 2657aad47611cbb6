"""Plays histories of `crash_script` on two directories in a process that is killed by a real SIGKILL, again and again.

    python killed_histories.py FOLDER SEED NUM_STRUCK

A program of its own, because it forks: each player is a child of a process with one thread. A player tells in a file,
before each call that writes, what it has been promised so far; whoever comes after the kill holds both stores to the
last whole line, cleans up, and hands the same stores to the next player. Goes on until NUM_STRUCK kills have struck in
the middle of a move, and prints as JSON how many struck in which. Ends with a trace when a promise was broken.
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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TypeVar

from typing_extensions import Buffer

from behemoth.base.ids import Step, WriteId
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import FaultyStore
from checkpoint.crash_script import Book, Books, Tiers, is_commit, owned, play, recover

MAX_MOVES = 1000
"""More than a player can make before it is killed."""
MAX_KILLS_PER_STRIKE = 4
LONGEST_S = 0.25
"""Of a player's life. A move takes some 10 ms, so that every kind of it is hit."""

_T = TypeVar("_T")


class TellingStore(FaultyStore):
    """Tells before each call that writes, and whether that makes a commit."""

    def __init__(self, inner: LocalStore, tell: Callable[[bool], None]) -> None:
        super().__init__(inner)
        self._tell = tell
        self._is_committing = False

    def create(self, key: str, data: Buffer) -> None:
        self._is_committing = is_commit(key)
        super().create(key, data)
        self._is_committing = False

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        self._is_committing = is_commit(key)
        super().replace(key, old=old, new=new)
        self._is_committing = False

    def _write(self, whole: Callable[[], _T], half: Callable[[], object]) -> _T:
        self._tell(self._is_committing)
        return super()._write(whole, half)


def told(books: Books, move: str) -> bytes:
    """One line."""
    sets = [[sorted(one) for one in astuple(book)] for book in (books.upper, books.lower)]
    return json.dumps([*sets, books.num_writes_of_ids, move]).encode() + b"\n"


def heard(lines: bytes) -> tuple[Books, str]:
    """The books and the move of the last whole line; a kill may have torn one."""
    upper, lower, number, move = json.loads(lines[: lines.rindex(b"\n")].splitlines()[-1])
    return Books(_book(upper), _book(lower), number), move


def _book(sets: Sequence[Sequence[tuple[int, str]]]) -> Book:
    return Book(*({(Step(step), WriteId(write_id)) for step, write_id in writes} for writes in sets))


def stores(folder: Path) -> Tiers[LocalStore]:
    return Tiers(LocalStore(folder / "upper"), LocalStore(folder / "lower"))


def main(folder: Path, seed: int, wanted: int) -> None:
    rng = random.Random(seed)
    books, struck = Books(), Counter[str]()
    _in_a_child(partial(_begin, folder))
    for kill in itertools.count():
        if struck.total() == wanted:
            break
        if kill == MAX_KILLS_PER_STRIKE * wanted:
            sys.exit(f"of {kill} kills {struck.total()} struck, expected {wanted}")
        lines = folder / f"books-{kill}"
        lines.write_bytes(told(books, ""))
        of_player = seed * MAX_KILLS_PER_STRIKE * wanted + kill
        _kill_a_player(folder, lines, seed=of_player, after_s=rng.uniform(0, LONGEST_S))
        books, move = heard(lines.read_bytes())
        struck.update([move] if move else [])
        _in_a_child(partial(_clean_up, folder, lines, books, drains=kill % 2 == 1))
        books, _ = heard(lines.read_bytes())
        lines.unlink()
    sys.stdout.write(f"{json.dumps(struck)}\n")


def _begin(folder: Path) -> None:
    owned(stores(folder))


def _kill_a_player(folder: Path, lines: Path, *, seed: int, after_s: float) -> None:
    """`after_s` counts from the player's first write."""
    began, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        _as_a_child(lambda: _be_a_player(folder, lines, begin, seed))
    os.close(begin)
    select.select([began], [], [])  # readable at the first write, and at its end
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    os.close(began)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"a player ended by itself, with status {status}")


def _be_a_player(folder: Path, lines: Path, begin: int, seed: int) -> None:
    books, _ = heard(lines.read_bytes())
    out = os.open(lines, os.O_WRONLY | os.O_APPEND)
    move = ""

    def tell(is_committing: bool) -> None:
        os.write(out, told(books, "commit" if is_committing and move == "save" else move))
        os.write(begin, b".")

    telling = stores(folder).each(lambda store: TellingStore(store, tell))
    for move in play(telling, books, seed=seed, num_moves=MAX_MOVES):  # noqa: B007 - `tell` reads it
        pass


def _clean_up(folder: Path, lines: Path, books: Books, *, drains: bool) -> None:
    """What the next leader does; tells in `lines` what is there then."""
    tiers = stores(folder)
    recover(tiers, books, drains=drains)
    for local in (tiers.upper, tiers.lower):
        assert [name for name in local.leftovers() if name.startswith("steps/") or not name.endswith("/")] == []
    lines.write_bytes(told(books, ""))


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
