"""A rank's part of a save against an agent that the test plays: what is told of updates, and copies nobody fenced."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.sdk import State, saver
from behemoth.wire.session import (
    Armed,
    InPhase,
    Proceed,
    Report,
    SaveDue,
    SaveOff,
    Staged,
    Staging,
    StagingFailed,
    Stalled,
)
from sdk.agent_end import LIMIT_S, Agent


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, agent: Agent) -> Agent:
    """As if the state were too large to be copied inside `save`."""
    monkeypatch.setattr(saver, "INLINE_BYTES", 0)
    return agent


def step(agent: Agent, number: int, *, fence: bool = True, updates: bool = True) -> None:
    """One turn of the loop that docs/integrate.md shows."""
    if fence:
        agent.run.fence(updates=updates)
    agent.weight += 1
    agent.run.report(number)
    agent.run.save(number, agent.state)


def no_copy_is_open() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "behemoth-copy"]


def test_a_large_state_that_is_fenced_is_staged_as_it_was(large: Agent) -> None:
    large.call(3, "a1-1")
    step(large, 3)
    large.run.fence()
    large.weight += 1
    staged = large.next(Staged)
    assert (staged.write_id, staged.updated_step) == ("a1-1", 3)
    assert np.frombuffer(large.arena.data(0), np.float64)[-1000:].max() == 1.0


@pytest.mark.parametrize("sign", ["report", "save", "end"])
def test_a_step_that_is_done_without_a_fence_costs_the_save_before_it(large: Agent, sign: str) -> None:
    large.call(3, "a1-1")
    loop = large.run.steps(2)
    assert next(loop) == 3
    step(large, 3)
    assert next(loop) == 4
    large.weight += 1
    match sign:
        case "report":
            large.run.report(4)
            large.run.fence()  # too late
        case "save":
            large.run.save(4, large.state)
        case "end":
            assert next(loop) == 5
    failed = large.next(StagingFailed)
    assert failed.write_id == "a1-1"
    assert "step 4 was done while the state of step 3 was still being copied" in failed.reason
    assert "call run.fence() in every step" in failed.reason
    assert no_copy_is_open()
    assert large.has_said(Staging)
    assert not large.has_said(Staged)
    assert large.arena.held() == ()


def test_training_and_saving_go_on_after_a_save_that_was_not_fenced(large: Agent) -> None:
    large.call(3, "a1-1")
    step(large, 3)
    step(large, 4, fence=False)
    assert large.next(StagingFailed).write_id == "a1-1"
    large.call(6, "a1-2", generation=1)
    for number in (5, 6, 7):
        step(large, number)
    assert large.next(Staged).write_id == "a1-2"


def test_a_save_without_free_memory_is_given_up_and_training_and_saving_go_on(agent: Agent) -> None:
    agent.call(3, "a1-1", generation=None)
    step(agent, 3)
    failed = agent.next(StagingFailed)
    assert failed.write_id == "a1-1"
    assert "no half of the staging memory is free at step 3" in failed.reason
    agent.grant("a1-1", 0)  # too late
    agent.call(6, "a1-2", generation=1)
    for number in (4, 5, 6):
        step(agent, number)
    staged = agent.next(Staged)
    assert (staged.write_id, staged.generation) == ("a1-2", 1)


def test_a_save_takes_memory_that_comes_free_in_a_moment(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "MEMORY_WAIT_S", LIMIT_S)
    agent.call(3, "a1-1", generation=None)
    training = threading.Thread(target=step, args=(agent, 3), name="rank")
    training.start()
    agent.until_phase("save")
    agent.grant("a1-1", 1)
    assert agent.next(Staged).generation == 1
    training.join(LIMIT_S)


def test_time_blocked_for_a_save_that_fails_is_told(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "MEMORY_WAIT_S", 0.05)
    agent.call(3, "a1-1", generation=None)
    step(agent, 3)
    assert agent.next(Stalled).stall_us >= 50_000
    assert agent.has_said(StagingFailed)


def test_time_blocked_for_a_last_save_that_is_given_up_is_told(agent: Agent) -> None:
    agent.peer.send(SaveDue(step=Step(3), write_id=WriteId("a1-1"), is_last=True), timeout_s=LIMIT_S)
    agent.grant("a1-1", 0)
    training = threading.Thread(target=step, args=(agent, 3), name="rank")
    training.start()
    agent.until_phase("save")
    began_ns = time.monotonic_ns()
    agent.peer.send(Proceed(write_id=WriteId("a1-1")), timeout_s=LIMIT_S)
    agent.next(Staged)
    waited_us = (time.monotonic_ns() - began_ns) // 1000
    agent.peer.send(SaveOff(write_id=WriteId("a1-1"), reason="no commit in time"), timeout_s=LIMIT_S)
    assert agent.next(Stalled).stall_us >= waited_us
    assert agent.next(InPhase).phase == "step"
    training.join(LIMIT_S)
    step(agent, 4)
    assert not agent.run._session.saver.has_ended  # type: ignore[union-attr]


def test_a_copy_in_the_background_stalls_training_twice(large: Agent) -> None:
    large.call(3, "a1-1")
    step(large, 3)
    large.next(Stalled)
    assert not large.has_said(Staged)
    large.run.fence()
    large.next(Staged)
    large.next(Stalled)


def test_a_step_that_only_gathers_gradients_fences_without_announcing_an_update(large: Agent) -> None:
    large.call(5, "a1-1")
    for number in (1, 2, 3, 4, 5, 6):
        step(large, number, updates=number == 2)
    assert large.next(Staged).updated_step == 2
    assert [message.updated_step for message in large.heard if isinstance(message, Staging)] == [2]


def test_a_small_state_needs_no_fence_and_tells_that_no_update_was_announced(agent: Agent) -> None:
    agent.call(3, "a1-1")
    for number in (1, 2, 3, 4):
        step(agent, number, fence=False)
    assert agent.next(Staged).updated_step == 0
    assert agent.has_said(Armed)
    assert not agent.has_said(StagingFailed)


def test_frozen_arrays_are_declared_by_their_place_and_change_no_layout() -> None:
    plain, frozen = Agent(), Agent(frozen=True)
    try:
        assert (plain.declared.frozen, frozen.declared.frozen) == ((), (1,))
        assert plain.declared.digest == frozen.declared.digest
    finally:
        plain.close()
        frozen.close()


def test_a_report_takes_numbers_of_numpy_into_the_run(agent: Agent) -> None:
    agent.run.report(np.int64(1), loss=np.float32(0.5), tokens=np.uint16(7))
    told = agent.next(Report)
    assert (told.step, told.loss, told.tokens) == (1, 0.5, 7)
    with pytest.raises(Conflict):
        agent.run.save(np.int64(1), State())
