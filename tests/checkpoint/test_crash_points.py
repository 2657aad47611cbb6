"""Killed at any write of saves, commits, drains, pins and clean-ups, every checkpoint that was committed and is kept
restores.

Three searches: every write of some histories, exhaustively, in simulated stores; real kills, at random moments, of a
process that writes to directories; and a state machine against a model, where hypothesis looks for the shortest history
that breaks a promise.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from behemoth.ports import SavesTo
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.company_rig import small_parts
from checkpoint.crash_script import MOVES, Books, Tiers, adopt, check, owned, recover
from checkpoint.crashes import Crashes, Simulated

NUM_CRASHES = 10_000
LEAST_BYTES = 16
"""Of a part, so that the small state has objects of several."""
TESTS = Path(__file__).parent.parent
KINDS = {*MOVES, "commit"}


def directory() -> MemoryStore:
    return MemoryStore()


def bucket() -> MemoryBucket:
    return MemoryBucket(min_part_bytes=LEAST_BYTES)


Made = Callable[[], Simulated]
PLACES = [(directory, bucket), (bucket, directory)]
IDS = ["to-a-bucket", "to-a-directory", "to-another-directory"]


def crash_everywhere(upper: Made, lower: Made, *, seed: int, num_moves: int) -> Counter[str]:
    with small_parts(LEAST_BYTES, 2 * LEAST_BYTES):
        return Crashes(seed, Tiers(upper(), lower())).play(num_moves=num_moves)


@pytest.mark.parametrize(("upper", "lower"), PLACES, ids=IDS[:2])
def test_every_crash_of_a_history_keeps_what_was_promised(upper: Made, lower: Made) -> None:
    crashes = crash_everywhere(upper, lower, seed=1, num_moves=8)
    assert crashes.total() > 250
    assert {"save", "commit", "drain", "gc"} <= set(crashes)


@pytest.mark.longer
@pytest.mark.parametrize(("upper", "lower"), [*PLACES, (directory, directory)], ids=IDS)
def test_ten_thousand_crashes_keep_what_was_promised(upper: Made, lower: Made) -> None:
    crashes, wanted = Counter[str](), NUM_CRASHES if upper is lower is directory else NUM_CRASHES // 5
    for seed in count(100):
        crashes += crash_everywhere(upper, lower, seed=seed, num_moves=24)
        if crashes.total() >= wanted:
            break
    print(f"crashes: {dict(crashes)}")  # noqa: T201 - a figure, shown by pytest -rP
    assert set(crashes) == KINDS


def test_real_kills_of_a_process_keep_what_was_promised(tmp_path: Path) -> None:
    kill_players(tmp_path, seed=1, num_struck=8)


@pytest.mark.longer
def test_five_hundred_real_kills_keep_what_was_promised(tmp_path: Path) -> None:
    struck = Counter[str]()
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        struck += kill_players(folder, seed=100 + number, num_struck=50)
    print(f"kills: {dict(struck)}")  # noqa: T201 - a figure, shown by pytest -rP
    assert {"save", "commit", "drain", "gc"} <= set(struck)


def kill_players(folder: Path, *, seed: int, num_struck: int) -> Counter[str]:
    """So many kills strike after the first write of the killed process, and before its end. Returns what was struck."""
    command = [
        sys.executable,
        str(TESTS / "checkpoint" / "killed_histories.py"),
        str(folder),
        str(seed),
        str(num_struck),
    ]
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    struck = Counter[str](json.loads(done.stdout))
    assert struck.total() == num_struck
    return struck


DEATHS = st.none() | st.builds(Die, write=st.integers(0, 25), when=st.sampled_from(When))
SEEDS = st.integers(0, 99)


class TwoStores(RuleBasedStateMachine):
    """Each rule is one move, which may die at one of its writes to either store, or live where it has fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers = owned(Tiers(MemoryStore(), MemoryStore()))
        self.books = Books()

    @initialize(num_saves=st.integers(0, 4))
    def begin(self, num_saves: int) -> None:
        for number in range(num_saves):
            MOVES["save"](self.tiers, self.books, random.Random(number))

    @rule(move=st.sampled_from(sorted(MOVES)), death=DEATHS, seed=SEEDS)
    def make(self, move: str, death: Die | None, seed: int) -> None:
        deadly: Tiers[SavesTo] = (
            self.tiers if death is None else self.tiers.each(lambda store: FaultyStore(store, death))
        )
        try:
            MOVES[move](deadly, self.books, random.Random(seed))
        except Crash:
            if seed % 2:
                self.lose_power(seed)
            adopt(self.tiers, self.books)

    @rule(seed=SEEDS)
    def lose_power(self, seed: int) -> None:
        """Between two moves: what has returned is durable."""
        self.tiers = self.tiers.each(lambda store: store.after_power_loss(seed=seed))

    @rule(drains=st.booleans())
    def lead_anew(self, drains: bool) -> None:
        recover(self.tiers, self.books, drains=drains)

    @invariant()
    def every_promise_holds(self) -> None:
        check(self.tiers, self.books)


TwoStores.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestTwoStores = TwoStores.TestCase
