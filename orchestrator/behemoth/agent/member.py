"""One worker, as its agent sees it: who it is, how far it is, how it ended.

Values and arithmetic only; `gang` acts. Times are microseconds of the agent's monotonic clock and leave this node
only as ages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from behemoth.agent.channel import Channel
from behemoth.agent.output import LogPipe
from behemoth.agent.storewire import Prepared
from behemoth.base.ids import Attempt, Rank, Step
from behemoth.policy.hang import laggard_key
from behemoth.state.config import HangFloors, WorkPhase
from behemoth.wire.reports import Beat
from behemoth.wire.session import FromWorker, Report

NO_STEP = Step(0)


@dataclass(slots=True, eq=False)
class Member:
    """A rank of this node in one attempt."""

    rank: Rank
    local_rank: int
    phase_since_us: int
    phase: WorkPhase = "start"
    channel: Channel[FromWorker] | None = None
    pipe: LogPipe | None = None
    pid: int = 0
    step: Step = NO_STEP
    has_joined: bool = False
    is_standing: bool = False
    prepared: Prepared | None = None
    """Where its state came from."""
    has_ended_steps: bool = False
    is_gone: bool = False
    is_failed: bool = False
    num_steps: int = 0
    slowest_step_us: int = 0
    stall_us: int = 0
    tokens: int = 0
    loss: float | None = None

    def was_prepared(self, answer: Prepared) -> None:
        """Keep the outcome of a restore; bytes of an earlier one, whose result the rank found damaged, are added."""
        if self.prepared is not None:
            answer = msgspec.structs.replace(
                answer,
                peer_bytes=self.prepared.peer_bytes + answer.peer_bytes,
                disk_bytes=self.prepared.disk_bytes + answer.disk_bytes,
                store_bytes=self.prepared.store_bytes + answer.store_bytes,
            )
        self.prepared = answer

    def enter(self, phase: WorkPhase, now_us: int) -> None:
        self.phase, self.phase_since_us = phase, now_us

    def completed(self, report: Report, now_us: int) -> None:
        """A step is done; the age of phase `step` counts from its newest step."""
        self.num_steps += max(0, report.step - self.step)
        self.step = report.step
        self.slowest_step_us = max(self.slowest_step_us, report.slowest_step_us)
        self.tokens += report.tokens
        self.loss = report.loss if report.loss is not None else self.loss
        if self.phase in ("first_step", "step"):
            self.enter("step", now_us)


def beat_of(
    members: Sequence[Member],
    attempt: Attempt,
    *,
    floors: HangFloors,
    port: int,
    last_slowest_us: int,
    now_us: int,
) -> Beat:
    """How far this node is. The slowest rank counts: the least step, then `hang.laggard_key`; of ranks without steps
    left, those that still run. `last_slowest_us` stands in when no step was completed since the last beat."""
    stepping = [member for member in members if not member.has_ended_steps]
    working = stepping or [member for member in members if not member.is_gone] or members
    laggard = min(working, key=lambda one: (one.step, laggard_key(one.phase, one.phase_since_us, floors=floors)))
    losses = [member.loss for member in members if member.loss is not None]
    return Beat(
        attempt=attempt,
        step=laggard.step,
        furthest_step=max(member.step for member in members),
        phase=laggard.phase,
        phase_age_us=max(0, now_us - laggard.phase_since_us),
        slowest_step_us=max(member.slowest_step_us for member in members) or last_slowest_us,
        stall_us=sum(member.stall_us for member in members),
        rendezvous_port=port,
        loss=sum(losses) / len(losses) if losses else None,
        tokens=sum(member.tokens for member in members),
    )


def idle_beat(attempt: Attempt, *, port: int) -> Beat:
    """The beat of a node without workers."""
    return Beat(
        attempt=attempt,
        step=Step(0),
        furthest_step=Step(0),
        phase="start",
        phase_age_us=0,
        slowest_step_us=0,
        stall_us=0,
        rendezvous_port=port,
    )


def now_us() -> int:
    """The agent's monotonic clock."""
    return time.monotonic_ns() // 1000
