"""What retention lets go, why it keeps the rest, and what it never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.policy.retention import DAY_US, HOUR_US, Dated, Retention, expired, verdicts

COMMITS = st.dictionaries(st.integers(0, 10_000).map(Step), st.integers(-10 * DAY_US, 10 * DAY_US), max_size=50).map(
    lambda times: [Dated(step=step, committed_us=at_us) for step, at_us in times.items()]
)
"""Times in any order: clocks jump."""
RETENTIONS = st.builds(
    Retention,
    keep_last=st.integers(2, 20),
    every_steps=st.none() | st.integers(1, 1000),
    hourly=st.integers(0, 30),
    daily=st.integers(0, 9),
)
PINNED = st.sets(st.integers(0, 10_000).map(Step), max_size=9)


def at(*steps: int) -> list[Dated]:
    """All within one hour."""
    return [Dated(step=Step(step), committed_us=0) for step in steps]


def at_hours(**hours: float) -> list[Dated]:
    """`s40=2.5`: step 40 was committed two and a half hours after the epoch."""
    return [Dated(step=Step(int(name[1:])), committed_us=int(hour * HOUR_US)) for name, hour in hours.items()]


@pytest.mark.parametrize(
    ("steps", "retention", "gone"),
    [
        ((), Retention(keep_last=2), ()),
        ((10,), Retention(keep_last=2), ()),
        ((10, 20), Retention(keep_last=2), ()),
        ((10, 20, 30), Retention(keep_last=2), (10,)),
        ((30, 10, 20, 40), Retention(keep_last=2), (10, 20)),
        ((10, 20, 30, 40), Retention(keep_last=3), (10,)),
        ((0, 10, 20, 30, 40, 50), Retention(keep_last=2, every_steps=20), (10, 30)),
        ((7, 14, 21, 28), Retention(keep_last=2, every_steps=1), ()),
    ],
)
def test_the_newest_and_the_milestones_stay(
    steps: tuple[Step, ...], retention: Retention, gone: tuple[Step, ...]
) -> None:
    assert expired(at(*steps), retention) == gone


def test_a_pinned_commit_stays() -> None:
    assert expired(at(10, 20, 30, 40), Retention(keep_last=2), pinned=[Step(10), Step(99)]) == (20,)


def test_of_each_of_the_latest_hours_the_newest_stays() -> None:
    commits = at_hours(s10=0.1, s20=0.9, s30=1.2, s40=1.8, s50=2.1, s60=2.2, s70=2.3)
    assert expired(commits, Retention(keep_last=2, hourly=2)) == (10, 20, 30, 50)
    assert expired(commits, Retention(keep_last=2, hourly=3)) == (10, 30, 50)
    assert expired(commits, Retention(keep_last=2, hourly=99)) == (10, 30, 50)


def test_hours_and_days_without_a_checkpoint_do_not_count() -> None:
    commits = at_hours(s10=1, s20=2, s30=500, s40=500.5, s50=501)
    assert expired(commits, Retention(keep_last=2, hourly=4)) == (30,)
    assert expired(commits, Retention(keep_last=2, daily=2)) == (10, 30)


def test_each_verdict_names_every_reason() -> None:
    commits = at_hours(s10=1, s20=30, s30=31, s40=31.5, s50=31.7)
    told = verdicts(commits, Retention(keep_last=2, every_steps=25, hourly=2, daily=2), pinned=[Step(30)])
    assert [(verdict.step, verdict.reasons) for verdict in told] == [
        (10, ("daily",)),
        (20, ("hourly",)),
        (30, ("pinned",)),
        (40, ("last",)),
        (50, ("last", "milestone", "hourly", "daily")),
    ]


def test_a_clock_that_jumped_ahead_for_a_while_costs_one_hour_of_the_count_and_ages_out() -> None:
    commits = at_hours(s10=1, s20=2, s30=9000, s40=3, s50=4, s60=5, s70=5.5)
    assert expired(commits, Retention(keep_last=2, hourly=4)) == (10, 20)
    assert expired(commits, Retention(keep_last=2, hourly=3)) == (10, 20, 30)


def test_a_clock_that_was_set_back_never_costs_the_last_ones() -> None:
    commits = at_hours(s10=5, s20=6, s30=1, s40=1.5)
    assert expired(commits, Retention(keep_last=2, hourly=2)) == (10,)


@given(COMMITS, RETENTIONS, PINNED)
def test_it_never_takes_the_last_ones_a_milestone_or_a_pinned_one(
    commits: list[Dated], retention: Retention, pinned: set[Step]
) -> None:
    steps = {commit.step for commit in commits}
    gone = set(expired(commits, retention, pinned=pinned))
    newest = set(sorted(steps)[-retention.keep_last :])
    assert gone <= steps - newest - pinned
    assert len(newest) >= min(2, len(steps))
    assert all(retention.every_steps is None or step % retention.every_steps for step in gone)


@given(COMMITS, RETENTIONS)
def test_of_as_many_hours_and_days_as_asked_one_is_left(commits: list[Dated], retention: Retention) -> None:
    gone = set(expired(commits, retention))
    left = [commit for commit in commits if commit.step not in gone]
    for span_us, number in ((HOUR_US, retention.hourly), (DAY_US, retention.daily)):
        spans = {commit.committed_us // span_us for commit in commits}
        assert len({commit.committed_us // span_us for commit in left}) >= min(number, len(spans))


@given(COMMITS, RETENTIONS, PINNED)
def test_asking_again_after_the_deletion_takes_nothing_more(
    commits: list[Dated], retention: Retention, pinned: set[Step]
) -> None:
    gone = set(expired(commits, retention, pinned=pinned))
    assert expired([commit for commit in commits if commit.step not in gone], retention, pinned=pinned) == ()


@pytest.mark.parametrize("keep_last", [1, 0, -1])
def test_keeping_fewer_than_two_is_refused(keep_last: int) -> None:
    with pytest.raises(Invalid, match=f"expected keep_last >= 2 commits, got {keep_last}"):
        Retention(keep_last=keep_last)


def test_a_milestone_every_zero_steps_is_refused() -> None:
    with pytest.raises(Invalid, match="expected every_steps >= 1 steps or none, got 0"):
        Retention(keep_last=2, every_steps=0)


@pytest.mark.parametrize("name", ["hourly", "daily"])
def test_fewer_than_no_hours_or_days_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match=f"expected {name} >= 0 checkpoints, got -1"):
        Retention(keep_last=2, **{name: -1})


def test_hours_are_those_of_the_clock() -> None:
    ten_o_clock_us = 490_000 * 3_600_000_000
    around = [Dated(step=Step(step), committed_us=ten_o_clock_us + step) for step in (-2, -1, 0, 1)]
    found = verdicts(around, Retention(keep_last=2, hourly=2))
    assert [verdict.step for verdict in found if "hourly" in verdict.reasons] == [-1, 1]
