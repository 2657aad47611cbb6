"""Random kills: whatever dies whenever, the run ends with the bytes of an undisturbed one and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault.attack import attack
from fault.kill_stage import spec, undisturbed

STEPS = 120
HANG_S = 900
"""Ends a hang only: on a busy machine each start of a run that was killed takes half a minute."""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


@pytest.mark.timeout(HANG_S)
def test_ten_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object) -> None:
    ranks_from = attack(tmp_path, spec(steps=STEPS), num_kills=10, expect=lambda stage: stage.expect_sound(digest))
    assert ranks_from.total() > 0


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(4))
def test_two_hundred_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object, _part: int) -> None:
    ranks_from = attack(tmp_path, spec(steps=STEPS), num_kills=50, expect=lambda stage: stage.expect_sound(digest))
    assert ranks_from["memory"] > 0
    assert ranks_from["store"] > 0
