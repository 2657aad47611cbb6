"""A random history of saves, commits, rejections, pins, unpins and clean-ups of one store, cut off at every write; and
what must be true of the store then.

The script is what the leader of a run and an operator do to a store, one after the other; `Book` is what they were told
so far. A history is its seed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit import commits, reject
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.pins import pin, pinned_writes, unpin
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.policy.retention import HOUR_US, Dated, Retention, expired
from behemoth.ports import SavesTo, UploadsParts
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Die, FaultyBucket, FaultyObjects, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout

RETENTION = Retention(keep_last=2, every_steps=4, hourly=2, daily=1)
Write = tuple[Step, WriteId]
Simulated = MemoryStore | MemoryBucket
_T = TypeVar("_T")


@dataclass
class Book:
    """What was promised. `committed` and `pinned` hold for what has returned; `maybe` is what was begun: a commit that
    may be there or not; `given_up` is what may be gone or going."""

    committed: set[Write] = field(default_factory=set)
    maybe: set[Write] = field(default_factory=set)
    given_up: set[Write] = field(default_factory=set)
    pinned: set[Write] = field(default_factory=set)
    num_writes_of_ids: int = 0

    @property
    def kept(self) -> set[Write]:
        """What must restore."""
        return self.committed - self.given_up

    def adopt(self, there: set[Write]) -> None:
        """After a crash: what is there counts from now on, whatever was promised of it."""
        self.committed = set(there)
        self.maybe.clear()
        self.given_up.clear()
        self.pinned &= there


def play(store: SavesTo, book: Book, *, seed: int, num_moves: int) -> None:
    """Moves in an order of this seed. Ends by Crash where the store does."""
    rng = random.Random(seed)
    for _ in range(num_moves):
        move = rng.choices((save_next, collect, pin_one, unpin_one, reject_newest), (6, 4, 2, 1, 1))[0]
        move(store, book, rng)


def save_next(store: SavesTo, book: Book, rng: random.Random) -> None:
    """A save, which may be given up before its commit; a step that was rejected is reached again."""
    book.num_writes_of_ids += 1
    step = Step(max((step for step, _ in book.kept), default=0) + 1)
    write = (step, WriteId(f"a1-{book.num_writes_of_ids}"))
    is_whole = rng.random() < 0.8
    if is_whole:
        book.maybe.add(write)
    at_us = (step // 2 + rng.randrange(-1, 3)) * HOUR_US  # a clock that jumps
    save(store, small_layout(), step=step, write_id=write[1], publish=is_whole, committed_us=at_us)
    if is_whole:
        book.committed.add(write)


def collect(store: SavesTo, book: Book, rng: random.Random) -> None:
    """Retention as the leader does it, and sometimes the rubbish."""
    found = [one for one in commits(store) if isinstance(one, CommitRef)]
    dated = [Dated(step=one.step, committed_us=one.committed_us) for one in found]
    pinned = [step for step, _ in book.pinned]
    gone = set(expired(dated, RETENTION, pinned=pinned))
    drop = [one for one in found if one.step in gone]
    book.given_up |= {(one.step, one.write_id) for one in drop}
    execute(store, plan_gc(store, drop=drop, in_flight=() if rng.random() < 0.7 else None))


def pin_one(store: SavesTo, book: Book, rng: random.Random) -> None:
    """One that is there."""
    if book.kept:
        step, write_id = rng.choice(sorted(book.kept))
        pin(store, CommitRef(step=step, write_id=write_id, size_bytes=0), reason="it is good", at_us=0)
        book.pinned.add((step, write_id))


def unpin_one(store: SavesTo, book: Book, rng: random.Random) -> None:
    """One that is pinned."""
    if book.pinned:
        write = rng.choice(sorted(book.pinned))
        book.pinned.discard(write)
        unpin(store, *write)


def reject_newest(store: SavesTo, book: Book, _rng: random.Random) -> None:
    """The newest did not restore; there is an older one."""
    if len(book.kept) > 2:
        step, write_id = max(book.kept)
        book.given_up.add((step, write_id))
        book.pinned.discard((step, write_id))
        reject(store, CommitRef(step=step, write_id=write_id, size_bytes=0), "a chunk was damaged")


def check(store: SavesTo, book: Book) -> set[Write]:
    """Every commit that is there is whole, to the bit, and none is missing that was promised. Returns them."""
    found = commits(store)
    assert all(isinstance(one, CommitRef) for one in found)
    for one in found:
        report = verify(store, one, threads=1, deep=True)
        assert report.is_intact, report.problems
    there = {(one.step, one.write_id) for one in found if isinstance(one, CommitRef)}
    assert book.kept <= there <= book.committed | book.maybe
    assert book.pinned <= there & pinned_writes(store)
    assert verify_store(store) == ()
    return there


def recover(store: SavesTo, book: Book) -> None:
    """The next leader cleans up, collects once more, and nothing of the crash is left."""
    there = check(store, book)
    execute(store, plan_gc(store, in_flight=()))
    assert check(store, book) == there
    book.adopt(there)
    collect(store, book, random.Random(0))
    execute(store, plan_gc(store, in_flight=()))
    there = check(store, book)
    kept = there | pinned_writes(store)
    assert {info.key.split("/")[1] for info in store.list("steps")} == {f"{s:09d}-{w}" for s, w in kept}
    assert list(store.list("deleting")) == []
    assert not isinstance(store, UploadsParts) or list(store.list_uploads("")) == []
    assert len(there) >= min(2, len(book.committed))


class ManyDeaths(FaultyObjects):
    """Dies before, in the middle of and after each write, each time in a world of its own, and lives on in this one.
    Ranks may write from several threads; one write is looked at at a time.

    `died` gets what is left of the store, and which death it was."""

    def __init__(self, inner: Simulated, died: Callable[[Simulated, Die], None]) -> None:
        super().__init__(inner)
        self._alive = inner
        self._died = died
        self._one = threading.Lock()

    def _write(self, whole: Callable[[], _T], half: Callable[[], object]) -> _T:
        with self._one:
            for when, done in ((When.BEFORE, lambda: None), (When.MIDDLE, half), (When.AFTER, whole)):
                left = self._alive.copy()
                self._inner = left
                done()
                self._died(left, Die(write=self.num_writes, when=when))
            self._inner = self._alive
            return super()._write(whole, half)


class ManyDeathsOfFiles(ManyDeaths, FaultyStore):
    """Of a directory."""


class ManyDeathsOfBucket(ManyDeaths, FaultyBucket):
    """Of object storage."""


def crash_everywhere(seed: int, *, num_moves: int, store: Simulated | None = None) -> int:
    """One history, cut off at every write in every way, by a kill or, where that leaves less, by a power cut. Returns
    the number of crashes, each of which left a store that holds all promises and that the next leader cleaned up."""
    store = store if store is not None else MemoryStore()
    book, num_deaths = Book(), 0

    def died(left: Simulated, death: Die) -> None:
        nonlocal num_deaths
        num_deaths += 1
        loses_power = isinstance(left, MemoryStore) and (seed + num_deaths) % 2 == 1
        try:
            after = left.after_power_loss(seed=num_deaths) if isinstance(left, MemoryStore) and loses_power else left
            recover(after, deepcopy(book))
        except Exception as error:
            error.add_note(f"history {seed}, {death}, power was {'lost' if loses_power else 'kept'}")
            raise

    deadly = ManyDeathsOfFiles(store, died) if isinstance(store, MemoryStore) else ManyDeathsOfBucket(store, died)
    play(deadly, book, seed=seed, num_moves=num_moves)
    return num_deaths
