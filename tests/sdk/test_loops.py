"""Loops that a program may have: that of `steps`, also held by somebody else and left, and one of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from behemoth.base.errors import Conflict
from behemoth.sdk import Run, State, join
from behemoth.wire.session import Armed, Missed, Report, Staged, StagingFailed, StepsEnded
from sdk.agent_end import Agent

Turns = tuple[Iterator[int], object]
"""What the program loops over, and what still holds the iterator when it has left the loop."""


def train(agent: Agent, step: int) -> None:
    agent.run.fence()
    agent.weight += 1
    agent.run.report(step)
    agent.run.save(step, agent.state)


def by_a_variable(steps: Iterator[int]) -> Turns:
    return steps, steps


def by_islice(steps: Iterator[int]) -> Turns:
    return islice(steps, 3), steps


def by_a_progress_bar(steps: Iterator[int]) -> Turns:
    """As tqdm does: a generator around what its object keeps."""
    return (step for step in steps), steps


# What an agent hears of a loop of the program's own


def test_an_own_loop_is_in_its_first_step_from_the_restore_on(agent: Agent) -> None:
    assert agent.phases() == ["restore", "first_step"]


def test_an_evaluation_within_the_first_step_leaves_it_the_first_step(agent: Agent) -> None:
    for step in islice(agent.run.steps(0), 1):
        with agent.run.phase("eval"):
            pass
        train(agent, step)
        with agent.run.phase("eval"):
            pass
    assert agent.phases() == ["restore", "first_step", "eval", "first_step", "eval", "step"]


def test_a_save_within_an_evaluation_leaves_it_an_evaluation(agent: Agent) -> None:
    agent.call(2, "a1-1")
    train(agent, 1)
    agent.run.report(2)
    with agent.run.phase("eval"):
        agent.run.save(2, agent.state)
    agent.next(Staged)
    assert agent.phases()[-4:] == ["eval", "save", "eval", "step"]


def test_an_own_loop_promises_no_save_of_a_step_that_it_has_passed(agent: Agent) -> None:
    train(agent, 1)
    agent.call(1, "a1-1")
    train(agent, 2)
    assert agent.next(Missed).step == 1
    agent.call(3, "a1-2")
    train(agent, 3)
    assert agent.next(Staged).write_id == "a1-2"
    assert [message.write_id for message in agent.heard if isinstance(message, Armed)] == ["a1-2"]
    assert not agent.has_said(StagingFailed)


# When it is over


def test_an_own_loop_is_told_that_the_last_save_is_committed(agent: Agent) -> None:
    agent.end(4)
    done = []
    for step in range(1, 101):
        train(agent, step)
        done.append(step)
        if agent.run.should_stop:
            break
    assert done == [1, 2, 3, 4]
    assert agent.has_said(StepsEnded)


def test_an_own_loop_that_goes_on_after_the_last_save_is_ended_with_its_next_step(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.end(2)
    train(agent, 1)
    train(agent, 2)
    agent.run.report(2, loss=0.5)
    agent.run.save(2, agent.state)
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as left:
        train(agent, 3)
    assert left.value.code == 0
    assert "step 3 comes after the run's last save" in caplog.text
    assert agent.next(StepsEnded)
    assert not [message for message in agent.heard if isinstance(message, Report) and message.step > 2]


def test_after_the_last_save_a_rank_has_the_time_of_a_save_and_that_of_its_blocks(agent: Agent) -> None:
    agent.end(1)
    train(agent, 1)
    with agent.run.phase("eval"):
        pass
    assert agent.phases()[-3:] == ["save", "eval", "save"]


def test_no_loop_of_steps_begins_after_the_last_save(agent: Agent) -> None:
    agent.end(2)
    for step in agent.run.steps(0, 50):
        train(agent, step)
    assert agent.run.should_stop
    assert list(agent.run.steps(2)) == []


def test_outside_a_run_nobody_stops_a_loop(alone: Run) -> None:
    state = State()
    alone.restore(state)
    alone.save(1, state)
    assert not alone.should_stop


# When the loop of `steps` is left


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    return join()


@pytest.mark.parametrize("hold", [by_a_variable, by_islice, by_a_progress_bar])
@pytest.mark.parametrize("is_made", [True, False])
def test_a_loop_that_is_left_while_somebody_holds_its_iterator_is_followed_by_one_of_the_programs_own(
    agent: Agent, hold: Callable[[Iterator[int]], Turns], is_made: bool
) -> None:
    """`is_made`: the program leaves it after the last step that it asked for, not before making it."""
    turns, held = hold(agent.run.steps(0))
    for step in turns:
        if step == 3 and not is_made:
            break
        train(agent, step)
        if step == 3:
            break
    agent.call(5, "a1-1")
    for step in range(4 if is_made else 3, 7):
        train(agent, step)
    assert agent.next(Staged).write_id == "a1-1"
    told = [message.step for message in agent.heard if isinstance(message, Report)]
    assert told == [1, 2, 3, 4, 5]
    assert held is not None


@pytest.mark.parametrize("hold", [by_a_variable, by_islice, by_a_progress_bar])
def test_within_the_loop_another_step_than_its_own_is_refused(
    alone: Run, hold: Callable[[Iterator[int]], Turns]
) -> None:
    state = State()
    alone.restore(state)
    turns, _ = hold(alone.steps(4, 9))
    step = next(turns)
    for wrong in (step - 1, step + 1):
        with pytest.raises(Conflict, match=f"report: expected step 5, where steps\\(\\) is now, got {wrong}"):
            alone.report(wrong)
        with pytest.raises(Conflict, match=f"save: expected step 5, where steps\\(\\) is now, got {wrong}"):
            alone.save(wrong, state)
    alone.report(step)
    with pytest.raises(Conflict, match="save: expected step 5") as caught:
        alone.save(step + 1, state)
    assert "report each step before its save" in caught.value.hint


def test_a_program_that_counts_two_steps_per_turn_is_refused_the_next_turn(alone: Run) -> None:
    turns = alone.steps(0, 9)
    step = next(turns)
    alone.report(step)
    alone.report(step + 1)
    with pytest.raises(Conflict, match="the loop that was left at step 1") as caught:
        next(turns)
    assert "one step per turn" in caught.value.hint


def test_a_loop_that_was_left_may_be_followed_by_another_loop_of_steps(alone: Run) -> None:
    former = alone.steps(0, 9)
    alone.report(next(former))
    alone.report(2)
    later = alone.steps(2, 9)
    assert next(later) == 3
    del former
    with pytest.raises(Conflict, match="expected step 3"):
        alone.report(2)
