"""Kills and stops of the completer of an upload, and of the leader that commits, when one certain request of theirs is
on its way to a real S3 server. Each run must end with the bytes of an undisturbed one, and leave nothing else in the
bucket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.testing.leftovers import Role
from fault.held_requests import COMMIT, COMPLETION, PART, STEPS, HeldRun, go_on, saving_there, stop
from fault.two_parts import expected_digest
from servers.fault_proxy import Fault, How, fault_proxy
from servers.s3_server import S3Server
from storage.s3_stores import let_in

SILENT_S = 4.0
"""Longer than a node may be silent."""


@pytest.fixture
def run(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldRun]:
    """It has one checkpoint."""
    let_in(monkeypatch, s3)
    with fault_proxy(s3.port) as proxy, saving_there(tmp_path, s3, proxy) as run:
        run.stage.start()
        run.stage.until_event("Committed")
        yield run


def finishes(run: HeldRun) -> None:
    run.stage.finish()
    run.stage.expect_sound(expected_digest(STEPS))
    assert run.expect_place()[-1].step == STEPS


def longer(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.longer)


@pytest.mark.parametrize(
    ("how", "role", "arrives"),
    [
        ("HOLD", "agent", False),  # between the parts and the completion
        longer("HOLD", "store", False),
        longer("HOLD", "agent", True),  # it completes the object when it is dead
        longer("HOLD", "store", True),
        longer("HOLD_ANSWER", "agent", False),  # the object is there, and its record was told nobody
        longer("HOLD_ANSWER", "store", False),
    ],
)
def test_a_completer_that_is_killed_at_its_completion_costs_its_save_alone(
    run: HeldRun, how: str, role: Role, arrives: bool
) -> None:
    completion = run.hold(Fault(How[how], "POST", COMPLETION))
    run.kill_sender(completion, role, arrives=arrives)
    finishes(run)


@pytest.mark.longer
@pytest.mark.parametrize("role", ["store", "agent"])
@pytest.mark.parametrize("part", [PART, COMPLETION])
def test_a_completer_that_is_stopped_is_waited_for_no_longer_than_a_save_may_take_and_may_go_on_then(
    run: HeldRun, role: Role, part: str
) -> None:
    num_before = len(run.stage.events("SaveAborted", "Evicted"))
    request = run.hold(Fault(How.HOLD, "POST" if part == COMPLETION else "PUT", part))
    stopped = run.sender(request, role)
    stop(stopped)
    run.stage.until(lambda: len(run.stage.events("SaveAborted", "Evicted")) > num_before, "the save to be given up")
    request.let_go()
    go_on(stopped)
    finishes(run)


@pytest.mark.longer
@pytest.mark.parametrize("part", ["/index", COMMIT])
@pytest.mark.parametrize("how", [How.HOLD, How.HOLD_ANSWER])
@pytest.mark.parametrize("arrives", [False, True])
def test_a_leader_that_is_killed_between_the_last_record_and_the_answer_to_its_commit_is_followed_by_another(
    run: HeldRun, how: How, part: str, arrives: bool
) -> None:
    run.kill_sender(run.hold(Fault(how, "PUT", part)), "run", arrives=arrives)
    finishes(run)


@pytest.mark.longer
def test_a_commit_that_arrives_when_the_next_leader_leads_counts_for_nobody(run: HeldRun) -> None:
    commit = run.hold(Fault(How.HOLD, "PUT", COMMIT))
    num_before = len(run.stage.events("Restored"))
    run.stage.kill(run.sender(commit, "run"), f"at {commit.line}")
    run.stage.resume()
    run.stage.until_event("Restored", num_before + 1)
    commit.let_go()
    finishes(run)


@pytest.mark.longer
def test_a_leader_that_is_stopped_at_its_commit_goes_on_where_it_was(run: HeldRun) -> None:
    commit = run.hold(Fault(How.HOLD, "PUT", COMMIT))
    leader = run.sender(commit, "run")
    stop(leader)
    commit.let_go()
    goes_on_s = time.monotonic() + SILENT_S
    run.stage.until(lambda: time.monotonic() > goes_on_s, "its agents to miss it")
    go_on(leader)
    finishes(run)
