"""What the leader makes of a store at the begin of its term."""

from __future__ import annotations

from dataclasses import replace

import pytest

from behemoth.app.checkpoint_desk import CheckpointDesk
from behemoth.base.clock import ManualClock
from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.paths import commit_key
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, save, toy_layout

LAYOUT = toy_layout()


def desk_of(store: MemoryStore) -> CheckpointDesk:
    return CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=lambda _: None)


def test_a_cut_off_commit_is_told_and_its_step_can_be_committed_again() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store.create(commit_key(Step(2)), first.encode()[:40])
    desk = desk_of(store)
    intact, bad = desk.survey()
    assert ([one.step for one in intact], [one.step for one in bad]) == ([1], [2])
    assert save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2).step == 2
    assert desk.survey()[1] == []
    desk.close()


def test_a_commit_of_a_newer_release_stops_the_run_and_is_left_alone() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    newer = replace(first, step=Step(2), format=FormatVersion(major=2, minor=0))
    store.create(commit_key(Step(2)), newer.encode())
    desk = desk_of(store)
    with pytest.raises(Invalid, match="format"):
        desk.survey()
    assert commit_key(Step(2)) in {info.key for info in store.list("commits")}
    desk.close()
