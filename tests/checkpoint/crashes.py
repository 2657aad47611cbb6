"""Cuts a history of `crash_script` off at every write of its stores, in memory, and looks at what is left of each."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

from typing_extensions import Buffer

from behemoth.ports import SavesTo
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Die, FaultyBucket, FaultyObjects, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.crash_script import Books, Tiers, is_commit, owned, play, recover

Simulated = MemoryStore | MemoryBucket
_T = TypeVar("_T")


class ManyDeaths(FaultyObjects):
    """Dies before, in the middle of and after each write, each time in a world of its own, and lives on in this one.
    Ranks may write from several threads; one write is looked at at a time.

    `died` gets what is left of the store, whether a commit was being made, and which death it was."""

    def __init__(self, inner: Simulated, died: Callable[[Simulated, bool, Die], None]) -> None:
        super().__init__(inner)
        self._alive = inner
        self._died = died
        self._one = threading.Lock()
        self._is_committing = False

    def create(self, key: str, data: Buffer) -> None:
        """No rank writes any more when a commit is made."""
        self._is_committing = is_commit(key)
        super().create(key, data)
        self._is_committing = False

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        self._is_committing = is_commit(key)
        super().replace(key, old=old, new=new)
        self._is_committing = False

    def _write(self, whole: Callable[[], _T], half: Callable[[], object]) -> _T:
        with self._one:
            for when, done in ((When.BEFORE, lambda: None), (When.MIDDLE, half), (When.AFTER, whole)):
                left = self._alive.copy()
                self._inner = left
                done()
                self._died(left, self._is_committing, Die(write=self.num_writes, when=when))
            self._inner = self._alive
            return super()._write(whole, half)


class ManyDeathsOfFiles(ManyDeaths, FaultyStore):
    """Of a directory."""


class ManyDeathsOfBucket(ManyDeaths, FaultyBucket):
    """Of object storage."""


class Crashes:
    """One history, cut off at every write in every way, by a kill or, where that leaves less, by a power cut. Each
    crash leaves stores that hold all promises and that the next leader cleans up."""

    def __init__(self, seed: int, tiers: Tiers[Simulated]) -> None:
        self._num_in = Counter[str]()
        self._seed = seed
        self._books = Books()
        self._tiers = owned(tiers)
        self._move = ""

    def play(self, *, num_moves: int) -> Counter[str]:
        """The number of crashes, by what was under way: a move, or the commit at the end of a save."""
        deadly = Tiers[SavesTo](
            _deadly(self._tiers.upper, lambda left, *how: self._died(Tiers(left, self._tiers.lower.copy()), *how)),
            _deadly(self._tiers.lower, lambda left, *how: self._died(Tiers(self._tiers.upper.copy(), left), *how)),
        )
        for move in play(deadly, self._books, seed=self._seed, num_moves=num_moves):
            self._move = move
        return self._num_in

    def _died(self, left: Tiers[Simulated], is_committing: bool, death: Die) -> None:
        self._num_in["commit" if is_committing and self._move == "save" else self._move] += 1
        number = self._num_in.total()
        loses_power = (self._seed + number) % 2 == 1
        try:
            recover(
                left.each(lambda store: after_power_loss(store, seed=number)) if loses_power else left,
                deepcopy(self._books),
                drains=number // 6 % 2 == 1,
            )
        except Exception as error:
            power = "lost" if loses_power else "kept"
            error.add_note(f"history {self._seed}, {self._move}, {death}, power was {power}")
            raise


def after_power_loss(store: Simulated, *, seed: int) -> Simulated:
    """Object storage has lost nothing then."""
    return store.after_power_loss(seed=seed) if isinstance(store, MemoryStore) else store


def _deadly(store: Simulated, died: Callable[[Simulated, bool, Die], None]) -> SavesTo:
    return ManyDeathsOfFiles(store, died) if isinstance(store, MemoryStore) else ManyDeathsOfBucket(store, died)
