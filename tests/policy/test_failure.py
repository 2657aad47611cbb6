"""Which explanation wins, and when enough is enough."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from behemoth.base.ids import Attempt, NodeId, Rank, Step
from behemoth.policy.failure import (
    incident_of_worker,
    is_hopeless,
    is_of_program,
    last_line,
    more_root_like,
    seen_after,
    tally_after,
)
from behemoth.state.evidence import WorkerFailed
from behemoth.state.observation import Cause, Incident, Tally


def incident(
    cause: Cause, *, at_us: int = 0, rank: int | None = None, node: str = "a", signature: str = ""
) -> Incident:
    return Incident(
        cause=cause,
        node=NodeId(node),
        rank=None if rank is None else Rank(rank),
        reason=cause,
        at_us=at_us,
        act_at_us=at_us,
        told_us=at_us,
        signature=signature,
    )


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ("exit", "node", "node"),
        ("node", "exit", "node"),
        ("exit", "signal", "signal"),
        ("hang", "exit", "exit"),
        ("signal", "coordinator", "coordinator"),
        ("ended", "exit", "exit"),
    ],
)
def test_the_more_root_like_cause_wins_with_the_earliest_sign(first: Cause, second: Cause, winner: Cause) -> None:
    best = more_root_like(incident(first, at_us=1), incident(second, at_us=2))
    assert (best.cause, best.at_us, best.act_at_us) == (winner, 1, 1)


@pytest.mark.parametrize(("first", "second", "decided_us"), [(7, None, 7), (None, 8, 8), (None, None, None)])
def test_that_an_end_was_decided_on_outlives_a_better_explanation(
    first: int | None, second: int | None, decided_us: int | None
) -> None:
    one, other = replace(incident("exit"), decided_us=first), replace(incident("node"), decided_us=second)
    assert more_root_like(one, other).decided_us == decided_us


def test_only_an_exit_that_says_something_has_a_signature() -> None:
    failed = WorkerFailed(
        node=NodeId("a"), attempt=Attempt(1), rank=Rank(2), exit_code=1, signal=None, last_lines="boom"
    )
    signatures = [
        incident_of_worker(one, first_sign_us=0, now_us=0, settle_us=0).signature
        for one in (failed, replace(failed, last_lines=" \n"), replace(failed, exit_code=None, signal=9))
    ]
    assert signatures == ["exit code 1: boom", "", ""]


def test_a_signal_acts_at_once_and_an_exit_settles() -> None:
    failed = WorkerFailed(
        node=NodeId("a"), attempt=Attempt(1), rank=Rank(2), exit_code=1, signal=None, last_lines="x\nboom\n\n"
    )
    settling = incident_of_worker(failed, first_sign_us=3, now_us=5, settle_us=10)
    assert (settling.cause, settling.act_at_us, settling.at_us) == ("exit", 15, 3)
    assert settling.reason == "rank 2 on node a ended with exit code 1: boom"
    killed = WorkerFailed(node=NodeId("a"), attempt=Attempt(1), rank=Rank(2), exit_code=None, signal=9, last_lines="")
    assert incident_of_worker(killed, first_sign_us=3, now_us=5, settle_us=10).act_at_us == 5


@pytest.mark.parametrize(("quiet_us", "at_us"), [(None, 30), (10, 40), (0, 50), (40, 30)])
def test_a_failure_dates_from_the_last_sign_of_the_gang_or_of_the_rank_itself(quiet_us: int | None, at_us: int) -> None:
    failed = WorkerFailed(
        node=NodeId("a"),
        attempt=Attempt(1),
        rank=Rank(2),
        exit_code=1,
        signal=None,
        last_lines="",
        quiet_us=quiet_us,
    )
    assert incident_of_worker(failed, first_sign_us=30, now_us=50, settle_us=10).at_us == at_us


def test_last_line_skips_blank_ones_and_is_bounded() -> None:
    assert last_line("a\n b \n\n") == "b"
    assert last_line("") == ""
    assert len(last_line("x" * 1_000)) == 300


def test_the_exception_of_the_last_traceback_is_what_a_worker_says_whatever_comes_after_it() -> None:
    first = "Traceback (most recent call last):\n  File 'a', line 1\nKeyError: 'x'\n"
    second = "Traceback (most recent call last):\n  File 'b', line 2\n    f()\nmine.BadBatch: negative\nsecond line\n"
    assert last_line(f"{first}\nDuring handling ...\n\n{second}exit handlers run\n") == "mine.BadBatch: negative"
    assert last_line("Traceback (most recent call last):\n  File 'a', line 1\n") == "File 'a', line 1"


def test_the_same_signature_on_two_nodes_is_the_programs() -> None:
    seen = seen_after(incident("exit", signature="boom"), ())
    assert is_of_program(incident("exit", node="b", signature="boom"), seen)
    assert not is_of_program(incident("exit", node="a", signature="boom"), seen)
    assert not is_of_program(incident("exit", node="b"), seen_after(incident("exit"), ()))
    assert seen_after(incident("exit"), seen) == seen
    assert seen_after(replace(incident("hang", signature="silence"), node=None), seen) == seen


@pytest.mark.parametrize(
    ("rank", "signature", "step", "is_stuck", "num_same"),
    [
        (1, "", 5, False, 3),
        (7, "boom", 5, False, 3),
        (7, "", 10, False, 3),
        (7, "", 5, True, 3),
        (7, "", 5, False, 1),
    ],
    ids=["same rank", "same stack", "same step", "no step at all", "another failure"],
)
def test_what_counts_as_the_same_failure(rank: int, signature: str, step: int, is_stuck: bool, num_same: int) -> None:
    former = Tally(
        num_same=2, num_any=2, best_step=10, latest=incident("signal", rank=1, signature="boom"), latest_step=10
    )
    failed = incident("signal", rank=rank, signature=signature)
    tally = tally_after(former, failed, best_step=Step(10), step=Step(step), is_stuck=is_stuck)
    assert (tally.num_same, tally.num_any) == (num_same, 3)
    assert is_hopeless(tally, max_failures=3) is (num_same == 3)


@pytest.mark.parametrize("latest", [None, incident("exit", rank=1)])
def test_a_failure_of_another_kind_is_another_failure_on_the_same_rank_too(latest: Incident | None) -> None:
    former = Tally(num_same=2, num_any=2, best_step=10, latest=latest, latest_step=10)
    tally = tally_after(former, incident("signal", rank=1), best_step=Step(10), step=Step(5), is_stuck=False)
    assert (tally.num_same, tally.num_any) == (1, 3)


def test_progress_begins_a_new_tally() -> None:
    former = Tally(num_same=2, num_any=8, best_step=10, latest=incident("hang"), latest_step=10)
    tally = tally_after(former, incident("hang"), best_step=Step(11), step=Step(11), is_stuck=False)
    assert (tally.num_same, tally.num_any) == (1, 1)


def test_nine_different_failures_without_progress_are_hopeless_too() -> None:
    assert is_hopeless(Tally(num_same=1, num_any=9), max_failures=3)
    assert not is_hopeless(Tally(num_same=2, num_any=8), max_failures=3)
