"""Killed at any write of saves, commits, pins and clean-ups, every checkpoint that was committed and kept restores.

Three searches: every write of some histories, exhaustively, in a simulated store; real kills, at random moments, of a
process that writes to a directory; and a state machine against a model, where hypothesis looks for the shortest history
that breaks a promise.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from behemoth.ports import ObjectStore
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.crash_script import (
    Book,
    check,
    collect,
    crash_everywhere,
    pin_one,
    recover,
    reject_newest,
    save_next,
    unpin_one,
)
from checkpoint.upload_rig import small_parts

NUM_CRASHES = 10_000
LEAST_BYTES = 16
"""Of a part, so that the small state has objects of several."""
TESTS = Path(__file__).parent.parent


def test_every_crash_of_a_history_keeps_what_was_promised() -> None:
    assert crash_everywhere(1, num_moves=12) > 250


def test_every_crash_of_a_history_of_uploads_keeps_what_was_promised() -> None:
    with small_parts(LEAST_BYTES, 2 * LEAST_BYTES):
        assert crash_everywhere(1, num_moves=12, store=MemoryBucket(min_part_bytes=LEAST_BYTES)) > 250


@pytest.mark.longer
def test_two_thousand_crashes_of_uploads_keep_what_was_promised() -> None:
    num_crashes, seed = 0, 100
    with small_parts(LEAST_BYTES, 2 * LEAST_BYTES):
        while num_crashes < NUM_CRASHES // 5:
            num_crashes += crash_everywhere(seed, num_moves=24, store=MemoryBucket(min_part_bytes=LEAST_BYTES))
            seed += 1


@pytest.mark.longer
def test_ten_thousand_crashes_keep_what_was_promised() -> None:
    num_crashes, seed = 0, 100
    while num_crashes < NUM_CRASHES:
        num_crashes += crash_everywhere(seed, num_moves=24)
        seed += 1


def test_real_kills_of_a_process_keep_what_was_promised(tmp_path: Path) -> None:
    kill_players(tmp_path, seed=1, num_struck=8)


@pytest.mark.longer
@pytest.mark.parametrize("seed", range(10))
def test_five_hundred_real_kills_keep_what_was_promised(tmp_path: Path, seed: int) -> None:
    kill_players(tmp_path, seed=100 + seed, num_struck=50)


def kill_players(folder: Path, *, seed: int, num_struck: int) -> None:
    """So many kills strike after the first write of the killed process, and before its end."""
    command = [
        sys.executable,
        str(TESTS / "checkpoint" / "killed_histories.py"),
        str(folder),
        str(seed),
        str(num_struck),
    ]
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{num_struck}\n"), done.stderr


DEATHS = st.none() | st.builds(Die, write=st.integers(0, 25), when=st.sampled_from(When))
SEEDS = st.integers(0, 99)
Move = Callable[[ObjectStore, Book, random.Random], None]


class OneStore(RuleBasedStateMachine):
    """Each rule is one move, which may die at one of its writes, or live where it has fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.book = Book()

    @initialize(num_saves=st.integers(0, 4))
    def begin(self, num_saves: int) -> None:
        for number in range(num_saves):
            save_next(self.store, self.book, random.Random(number))

    @rule(death=DEATHS, seed=SEEDS)
    def save(self, death: Die | None, seed: int) -> None:
        self._move(save_next, death, seed)

    @rule(death=DEATHS, seed=SEEDS)
    def collect(self, death: Die | None, seed: int) -> None:
        self._move(collect, death, seed)

    @rule(death=DEATHS, seed=SEEDS)
    def pin(self, death: Die | None, seed: int) -> None:
        self._move(pin_one, death, seed)

    @rule(death=DEATHS, seed=SEEDS)
    def unpin(self, death: Die | None, seed: int) -> None:
        self._move(unpin_one, death, seed)

    @rule(death=DEATHS, seed=SEEDS)
    def reject(self, death: Die | None, seed: int) -> None:
        self._move(reject_newest, death, seed)

    @rule(seed=SEEDS)
    def lose_power(self, seed: int) -> None:
        """Between two moves: what has returned is durable."""
        self.store = self.store.after_power_loss(seed=seed)

    @rule()
    def lead_anew(self) -> None:
        recover(self.store, self.book)

    @invariant()
    def every_promise_holds(self) -> None:
        check(self.store, self.book)

    def _move(self, move: Move, death: Die | None, seed: int) -> None:
        if death is None:
            move(self.store, self.book, random.Random(seed))
            return
        try:
            move(FaultyStore(self.store, death), self.book, random.Random(seed))
        except Crash:
            if seed % 2:
                self.store = self.store.after_power_loss(seed=seed)
            self.book.adopt(check(self.store, self.book))


OneStore.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestOneStore = OneStore.TestCase
