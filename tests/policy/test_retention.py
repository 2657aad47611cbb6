"""What retention lets go, and what it never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.policy.retention import Retention, expired

STEPS = st.sets(st.integers(0, 10_000).map(Step), max_size=50)
RETENTIONS = st.builds(Retention, keep_last=st.integers(2, 20), every_steps=st.none() | st.integers(1, 1000))


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
    assert expired(steps, retention) == gone


def test_a_pinned_commit_stays() -> None:
    steps = [Step(step) for step in (10, 20, 30, 40)]
    assert expired(steps, Retention(keep_last=2), pinned=[Step(10), Step(99)]) == (20,)


@given(STEPS, RETENTIONS, STEPS)
def test_it_never_takes_the_last_ones_a_milestone_or_a_pinned_one(
    steps: set[Step], retention: Retention, pinned: set[Step]
) -> None:
    gone = set(expired(steps, retention, pinned=pinned))
    newest = set(sorted(steps)[-retention.keep_last :])
    assert gone <= steps - newest - pinned
    assert len(newest) >= min(2, len(steps))
    assert all(retention.every_steps is None or step % retention.every_steps for step in gone)


@given(STEPS, RETENTIONS)
def test_asking_again_after_the_deletion_takes_nothing_more(steps: set[Step], retention: Retention) -> None:
    assert expired(steps - set(expired(steps, retention)), retention) == ()


@pytest.mark.parametrize("keep_last", [1, 0, -1])
def test_keeping_fewer_than_two_is_refused(keep_last: int) -> None:
    with pytest.raises(Invalid, match=f"expected keep_last >= 2 commits, got {keep_last}"):
        Retention(keep_last=keep_last)


def test_a_milestone_every_zero_steps_is_refused() -> None:
    with pytest.raises(Invalid, match="expected every_steps >= 1 steps or none, got 0"):
        Retention(keep_last=2, every_steps=0)
