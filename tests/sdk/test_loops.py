"""Loops that a program may have: that of `steps`, and one of its own."""

from __future__ import annotations

from itertools import islice

from behemoth.wire.session import Armed, Missed, Staged, StagingFailed
from sdk.agent_end import Agent


def train(agent: Agent, step: int) -> None:
    agent.run.fence()
    agent.weight += 1
    agent.run.report(step)
    agent.run.save(step, agent.state)


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
