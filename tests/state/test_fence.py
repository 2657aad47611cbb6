"""Only one run's newest coordinator and newest start may act."""

from __future__ import annotations

import pytest

from behemoth.base.ids import Attempt, Epoch, RunUid
from behemoth.state.fence import Fence


def fence(epoch: int, attempt: int, run: str = "run") -> Fence:
    return Fence(run_uid=RunUid(run), epoch=Epoch(epoch), attempt=Attempt(attempt))


@pytest.mark.parametrize(
    ("told", "is_stale"),
    [
        (fence(2, 3), False),
        (fence(2, 4), False),
        (fence(3, 3), False),
        (fence(2, 2), True),
        (fence(1, 3), True),
        (fence(1, 9), True),
        (fence(3, 2), True),
        (fence(2, 3, run="other"), True),
        (fence(9, 9, run="other"), True),
    ],
)
def test_what_is_older_than_what_was_seen_is_stale(told: Fence, is_stale: bool) -> None:
    assert told.is_stale_against(fence(2, 3)) is is_stale
