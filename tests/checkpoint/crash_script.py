"""A random history of saves, drains to a second store, rejections, pins, unpins and clean-ups; and what must be true of
both stores wherever it is cut off.

"Restores" is meant literally: after a crash every commit that is there is restored by the reader that agents use, on
the mesh that it was saved on or on another, and compared with what was saved.

The script is what the leader of a run, its drain process and an operator do, one after the other; `Books` is what they
were told so far. A history is its seed. Neighbours: `crashes`, which cuts it off at every write of stores in memory,
and `killed_histories`, which does so with real kills.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, TypeVar

from behemoth.app.drains.messages import Settings
from behemoth.app.drains.process import drain_one
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.commit_log import commits, reject, rejected_writes
from behemoth.checkpoint.gc import LATE_S, execute, plan_gc
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.paths import COMMITS
from behemoth.checkpoint.pins import pin, pinned_writes, unpin
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.policy.retention import HOUR_US, Dated, Retention, expired
from behemoth.ports import ObjectStore, SavesTo, UploadsParts
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from checkpoint.restored import Held, held_on, restored_on
from checkpoint.saved_checkpoint import save, saved_arrays, small_layout

RETENTION = Retention(keep_last=2, every_steps=4, hourly=2, daily=1)
"""Of either store."""
SETTINGS = Settings(source="upper", target="lower", run_uid=RunUid("run"), threads=1, rate=None, retention=RETENTION)
MESHES = (small_layout().mesh, Mesh(), Mesh(dp=3, edp=3))
"""On which checkpoints are restored, by turns of their steps: their own, and smaller and larger ones."""
Write = tuple[Step, WriteId]
_Store = TypeVar("_Store", bound=ObjectStore, covariant=True)
_Other = TypeVar("_Other", bound=ObjectStore)


@dataclass
class Book:
    """What was promised of one store. `committed` and `pinned` hold for what has returned; `maybe` is what was begun: a
    commit that may be there or not; `given_up` is what may be gone or going."""

    committed: set[Write] = field(default_factory=set)
    maybe: set[Write] = field(default_factory=set)
    given_up: set[Write] = field(default_factory=set)
    pinned: set[Write] = field(default_factory=set)

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


@dataclass
class Books:
    """Of both stores."""

    upper: Book = field(default_factory=Book)
    lower: Book = field(default_factory=Book)
    num_writes_of_ids: int = 0


@dataclass(frozen=True)
class Tiers(Generic[_Store]):
    """The store that ranks save to, and the one that checkpoints are drained to, which belongs to the run."""

    upper: _Store
    lower: _Store

    def each(self, change: Callable[[_Store], _Other]) -> Tiers[_Other]:
        return Tiers(change(self.upper), change(self.lower))


def owned(tiers: Tiers[_Store]) -> Tiers[_Store]:
    """The lower one taken, as a run does before anything else. Idempotent."""
    take(tiers.lower, Owner.of_run(SETTINGS.run_uid, name="run", directory="/run"), url=SETTINGS.target)
    return tiers


def play(tiers: Tiers[SavesTo], books: Books, *, seed: int, num_moves: int) -> Iterator[str]:
    """Moves in an order of this seed; the name of each is told before it is made. Ends by Crash where a store does."""
    rng = random.Random(seed)
    for _ in range(num_moves):
        (name,) = rng.choices(list(MOVES), (6, 4, 4, 2, 1, 1))
        yield name
        MOVES[name](tiers, books, rng)


def save_next(tiers: Tiers[SavesTo], books: Books, rng: random.Random) -> None:
    """A save, which may be given up before its commit; a step that was rejected is reached again."""
    book = books.upper
    books.num_writes_of_ids += 1
    step = Step(max((step for step, _ in book.kept), default=0) + 1)
    write = (step, WriteId(f"a1-{books.num_writes_of_ids}"))
    is_whole = rng.random() < 0.8
    if is_whole:
        book.maybe.add(write)
    at_us = (step // 2 + rng.randrange(-1, 3)) * HOUR_US  # a clock that jumps
    save(tiers.upper, small_layout(), step=step, write_id=write[1], publish=is_whole, committed_us=at_us)
    if is_whole:
        book.committed.add(write)


def collect(tiers: Tiers[SavesTo], books: Books, rng: random.Random) -> None:
    """Retention as the leader does it, and sometimes the rubbish."""
    _collect(tiers.upper, books.upper, sweeps=rng.random() < 0.7)


def _collect(store: SavesTo, book: Book, *, sweeps: bool) -> None:
    found = _intact(store)
    gone = _expired(found, book.pinned)
    book.given_up |= gone
    drop = [one for one in found if _write(one) in gone]
    execute(store, plan_gc(store, drop=drop, in_flight=() if sweeps else None))


def drain_newest(tiers: Tiers[SavesTo], books: Books, _rng: random.Random) -> None:
    """As the drain process does it, with rejections and retention of the lower store."""
    upper, lower = books.upper, books.lower
    if not upper.kept:
        return
    (newest,) = [one for one in _intact(tiers.upper) if _write(one) == max(upper.kept)]
    rejected = rejected_writes(tiers.upper)
    # A step that retention has given up above, and that is reached again since later ones were rejected.
    lower.given_up |= rejected | {one for one in lower.committed if one[0] == newest.step and one != _write(newest)}
    below = [one for one in _intact(tiers.lower) if _write(one) not in lower.given_up | {_write(newest)}]
    lower.given_up |= _expired([*below, newest], upper.pinned | lower.pinned)
    lower.maybe.add(_write(newest))
    drained = drain_one(SETTINGS, tiers.upper, tiers.lower, newest)
    assert drained.untidy == ""
    assert rejected.isdisjoint(map(_write, _intact(tiers.lower)))
    lower.committed.add(_write(newest))


def pin_one(tiers: Tiers[SavesTo], books: Books, rng: random.Random) -> None:
    """One that is there."""
    if books.upper.kept:
        step, write_id = rng.choice(sorted(books.upper.kept))
        pin(tiers.upper, CommitRef(step=step, write_id=write_id, size_bytes=0), reason="it is good", at_us=0)
        books.upper.pinned.add((step, write_id))


def unpin_one(tiers: Tiers[SavesTo], books: Books, rng: random.Random) -> None:
    """One that is pinned."""
    if books.upper.pinned:
        write = rng.choice(sorted(books.upper.pinned))
        books.upper.pinned.discard(write)
        unpin(tiers.upper, *write)


def reject_newest(tiers: Tiers[SavesTo], books: Books, _rng: random.Random) -> None:
    """The newest did not restore; there is an older one."""
    book = books.upper
    if len(book.kept) > 2:
        step, write_id = max(book.kept)
        book.given_up.add((step, write_id))
        book.pinned.discard((step, write_id))
        reject(tiers.upper, CommitRef(step=step, write_id=write_id, size_bytes=0), "a chunk was damaged")


MOVES: dict[str, Callable[[Tiers[SavesTo], Books, random.Random], None]] = {
    "save": save_next,
    "gc": collect,
    "drain": drain_newest,
    "pin": pin_one,
    "unpin": unpin_one,
    "reject": reject_newest,
}


def is_commit(key: str) -> bool:
    """Whether the object of this key makes a commit: the last one of a save or of a copy."""
    return key.startswith(f"{COMMITS}/")


def check(tiers: Tiers[SavesTo], books: Books) -> None:
    """Every commit that is in either store is whole, to the bit, and none is missing that was promised."""
    _check(tiers.upper, books.upper)
    _check(tiers.lower, books.lower)


def _check(store: SavesTo, book: Book) -> set[Write]:
    """Returns those that are there."""
    found = commits(store)
    assert all(isinstance(one, CommitRef) for one in found)
    for one in found:
        report = verify(store, one, threads=1, deep=True)
        assert report.is_intact, report.problems
    there = {_write(one) for one in found if isinstance(one, CommitRef)}
    assert book.kept <= there <= book.committed | book.maybe
    assert book.pinned <= there & pinned_writes(store)
    assert verify_store(store) == ()
    return there


def adopt(tiers: Tiers[SavesTo], books: Books) -> None:
    """After a crash, which is where checkpoints are restored."""
    for store, book in ((tiers.upper, books.upper), (tiers.lower, books.lower)):
        book.adopt(_check(store, book))
        for one in _intact(store):
            _require_restored(store, one)


def _require_restored(store: SavesTo, ref: CommitRef) -> None:
    """Every rank gets, on the mesh whose turn it is, what was saved."""
    layout, held = restored_on(store, ref, MESHES[ref.step % len(MESHES)])
    assert held == _expected(layout, ref.step), f"{ref.step}-{ref.write_id} is another one on {layout.mesh}"


@cache
def _expected(layout: Layout, step: Step) -> Held:
    return held_on(layout, saved_arrays(small_layout(), step))


def recover(tiers: Tiers[SavesTo], books: Books, *, drains: bool) -> None:
    """The next leader cleans up, collects once more, and nothing of the crash is left. When it `drains` first, what a
    copy that was cut off left is used or removed; it is gone otherwise."""
    adopt(tiers, books)
    if drains:
        drain_newest(tiers, books, random.Random(0))
        adopt(tiers, books)
        assert not books.upper.kept or max(books.upper.kept) in books.lower.kept
    _clean_up(tiers.upper, books.upper)
    _clean_up(tiers.lower, books.lower)


def _clean_up(store: SavesTo, book: Book) -> None:
    there = book.kept
    execute(store, plan_gc(store, in_flight=()))
    assert _check(store, book) == there
    _collect(store, book, sweeps=False)
    if isinstance(store, MemoryBucket):
        store.now_s += LATE_S
    execute(store, plan_gc(store, in_flight=()))
    there = _check(store, book)
    kept = there | pinned_writes(store)
    assert {info.key.split("/")[1] for info in store.list("steps")} == {f"{s:09d}-{w}" for s, w in kept}
    assert list(store.list("deleting")) == []
    assert not isinstance(store, UploadsParts) or list(store.list_uploads("")) == []
    assert len(there) >= min(2, len(book.committed))


def _intact(store: SavesTo) -> list[CommitRef]:
    return [one for one in commits(store) if isinstance(one, CommitRef)]


def _write(commit: CommitRef) -> Write:
    return commit.step, commit.write_id


def _expired(found: Sequence[CommitRef], pinned: Collection[Write]) -> set[Write]:
    """What retention gives up."""
    dated = [Dated(step=one.step, committed_us=one.committed_us) for one in found]
    gone = expired(dated, RETENTION, pinned=[one.step for one in found if _write(one) in pinned])
    return {_write(one) for one in found if one.step in gone}
