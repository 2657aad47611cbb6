"""Loops that a program may have: that of `steps`, and one of its own."""

from __future__ import annotations

from behemoth.wire.session import Armed, Missed, Staged, StagingFailed
from sdk.agent_end import Agent


def train(agent: Agent, step: int) -> None:
    agent.run.fence()
    agent.weight += 1
    agent.run.report(step)
    agent.run.save(step, agent.state)


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
