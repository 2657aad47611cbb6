"""Kills and stops of the process that drains to a real S3 server, and of its leader, at one certain request of a copy.
The last checkpoint must be whole in the second store before the run is over, and nothing else may be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.testing.leftovers import Role
from fault.held_requests import COMMIT, STEPS, HeldRun, draining_there, stop
from fault.two_parts import expected_digest
from servers.fault_proxy import Fault, FaultProxy, How, fault_proxy
from servers.s3_server import S3Server
from storage.s3_stores import let_in

NOT_FINISHED = 101
FIRST = Fault(How.HOLD, "POST", "flat/c/0?uploads")
MIDDLE = Fault(How.HOLD_ANSWER, "PUT", "flat/c/0?")
COMPLETED = Fault(How.HOLD_ANSWER, "POST", "flat/c/0?uploadId=")
BEFORE_ITS_RECORD = Fault(How.HOLD, "PUT", COMMIT)
BEHIND_ITS_RECORD = Fault(How.HOLD_ANSWER, "PUT", COMMIT)


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    let_in(monkeypatch, s3)
    with fault_proxy(s3.port) as standing:
        yield standing


def drained_steps(run: HeldRun) -> list[str]:
    return [str(event["message"]).split()[3] for event in run.stage.events("Drained")]


def finishes(run: HeldRun) -> None:
    run.stage.finish()
    run.stage.expect_sound(expected_digest(STEPS))
    assert run.expect_place()[-1].step == STEPS
    assert drained_steps(run)[-1] == str(STEPS)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("fault", "role", "arrives"),
    [
        (FIRST, "drain", False),
        (FIRST, "run", True),
        (MIDDLE, "drain", False),
        (MIDDLE, "run", False),
        (COMPLETED, "drain", False),
        (BEFORE_ITS_RECORD, "drain", False),
        (BEFORE_ITS_RECORD, "drain", True),
        (BEFORE_ITS_RECORD, "run", False),
        (BEFORE_ITS_RECORD, "run", True),
        (BEHIND_ITS_RECORD, "drain", False),
        (BEHIND_ITS_RECORD, "run", False),
    ],
)
def test_a_drain_that_is_killed_anywhere_goes_on_and_is_told_when_its_record_is_there(
    tmp_path: Path, s3: S3Server, proxy: FaultProxy, fault: Fault, role: Role, arrives: bool
) -> None:
    with draining_there(tmp_path, s3, proxy) as run:
        run.stage.start()
        request = run.hold(fault)
        assert drained_steps(run) == []
        run.kill_sender(request, role, arrives=arrives)
        finishes(run)


@pytest.mark.longer
def test_a_record_that_arrives_when_a_newer_checkpoint_was_drained_counts_for_nobody(
    tmp_path: Path, s3: S3Server, proxy: FaultProxy
) -> None:
    with draining_there(tmp_path, s3, proxy) as run:
        run.stage.start()
        request = run.hold(BEFORE_ITS_RECORD)
        assert f"/{STEPS:09d}.json" not in request.line
        newest = f"checkpoint of step {STEPS} committed"
        run.stage.until(lambda: newest in str(run.stage.events("Committed")[-1]["message"]), newest)
        run.stage.kill(run.sender(request, "drain"), f"at {request.line}")
        run.stage.until_event("Drained")
        request.let_go()
        finishes(run)


@pytest.mark.longer
def test_a_drain_that_is_stopped_leaves_the_run_unfinished_and_the_same_command_ends_it(
    tmp_path: Path, s3: S3Server, proxy: FaultProxy
) -> None:
    with draining_there(tmp_path, s3, proxy, more=", limit: 10s") as run:
        run.stage.start()
        request = run.hold(BEFORE_ITS_RECORD)
        stop(run.sender(request, "drain"))
        assert run.stage.wait() == NOT_FINISHED, run.stage.told()
        run.stage.expect_no_process()
        assert "code: not-durable" in run.stage.told()
        assert drained_steps(run) == []
        request.lose()
        run.stage.start()
        while run.stage.wait() == NOT_FINISHED:  # a busy machine may need more than one limit
            run.stage.start()
        finishes(run)
