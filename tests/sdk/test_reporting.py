"""How long the steps took that a rank reports, by a clock that the test sets, and in which phase it says to be."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from behemoth.base.ids import Step
from behemoth.sdk.reporting import Reporter
from behemoth.state.config import WorkPhase
from behemoth.wire.ends import Peer
from behemoth.wire.session import FROM_WORKER, TO_WORKER, FromWorker, InPhase, Report

LIMIT_S = 20.0
SECOND_NS = 1_000_000_000


class Desk:
    """A reporter, its clock, and the agent's end of its session."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.now_s = 0
        self.peers = Peer(theirs, TO_WORKER), Peer(ours, FROM_WORKER)
        self.reporter = Reporter(self.peers[0], limit_s=LIMIT_S, now_ns=lambda: self.now_s * SECOND_NS)

    def report(self, step: int, *, after_s: int) -> int:
        """Reports `step` so long after the last thing that was done; the seconds which the agent hears that it took."""
        self.now_s += after_s
        self.reporter.report(Step(step), loss=None, tokens=0)
        told = self.heard()[-1]
        assert isinstance(told, Report)
        return told.slowest_step_us // 1_000_000

    def heard(self) -> list[FromWorker]:
        messages = []
        while (message := self.peers[1].poll()) is not None:
            messages.append(message)
        return messages

    def phases(self) -> list[str]:
        return [message.phase for message in self.heard() if isinstance(message, InPhase)]


@pytest.fixture
def desk() -> Iterator[Desk]:
    here = Desk()
    yield here
    for peer in here.peers:
        peer.close()


def test_a_step_takes_from_the_report_before_it_to_its_own(desk: Desk) -> None:
    desk.now_s = 40  # the restore
    desk.reporter.enter("first_step")
    assert [desk.report(1, after_s=9), desk.report(2, after_s=2), desk.report(3, after_s=3)] == [9, 2, 3]


def test_a_step_that_a_loop_begins_does_not_take_what_was_done_before_it(desk: Desk) -> None:
    desk.report(1, after_s=2)
    desk.now_s += 7
    desk.reporter.begin_step()
    assert desk.report(2, after_s=3) == 3


def test_a_report_of_the_same_step_again_is_no_step_and_begins_none(desk: Desk) -> None:
    assert [desk.report(1, after_s=2), desk.report(1, after_s=1), desk.report(2, after_s=3)] == [2, 0, 4]


def test_blocks_of_another_phase_take_no_time_of_the_step_around_them(desk: Desk) -> None:
    desk.reporter.enter("step")
    desk.now_s += 1
    with desk.reporter.within("eval"):
        desk.now_s += 100
        with desk.reporter.within("save"):
            desk.now_s += 10
        desk.now_s += 100
    assert desk.report(1, after_s=2) == 3


def test_a_step_that_is_reported_within_a_block_leaves_the_next_one_its_own_time(desk: Desk) -> None:
    desk.reporter.enter("step")
    with desk.reporter.within("eval"):
        desk.report(1, after_s=5)
        desk.now_s += 100
    assert desk.report(2, after_s=2) == 2


@pytest.mark.parametrize("phase", ["restore", "first_step", "step"])
def test_after_a_block_the_rank_does_again_what_it_did_before(desk: Desk, phase: WorkPhase) -> None:
    desk.reporter.enter(phase)
    with desk.reporter.within("eval"), desk.reporter.within("save"):
        pass
    assert desk.phases() == [phase, "eval", "save", "eval", phase]


def test_after_a_block_that_fails_the_rank_does_again_what_it_did_before(desk: Desk) -> None:
    desk.reporter.enter("first_step")
    with pytest.raises(ValueError, match="no data"), desk.reporter.within("eval"):
        raise ValueError("no data")
    assert desk.phases() == ["first_step", "eval", "first_step"]


def test_the_first_step_is_over_with_its_report_also_within_a_block(desk: Desk) -> None:
    desk.reporter.enter("first_step")
    with desk.reporter.within("eval"):
        desk.reporter.report(Step(1), loss=None, tokens=0)
    with desk.reporter.within("save"):
        pass
    assert desk.phases() == ["first_step", "eval", "step", "save", "step"]
