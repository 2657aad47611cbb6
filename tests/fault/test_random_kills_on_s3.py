"""Random kills of runs that save to a real S3 server: each ends with the bytes that numpy alone gives, and leaves in
the bucket its commits, whole, and nothing else.

The program has an object that two ranks upload together, by parts: completers and leaders die in the middle of it.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.paths import write_of_key
from behemoth.state.effect import CommitRef
from fault.attack import also_aimed, attack, kill_the_run_behind_a_commit
from fault.kill_stage import KillStage, spec, staged
from fault.two_parts import expected_digest
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in

HERE = str(Path(__file__).parent)
STEPS = 80
ABOVE = "s3://BUCKET/PREFIX"
"""Stands in the run file for a prefix of the run's own."""


def on_s3(s3: S3Server, folder: Path, text: str) -> AbstractContextManager[KillStage]:
    above = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    environment = {**s3.environment, "PYTHONPATH": HERE}
    return staged(folder, text.replace(ABOVE, above), store_url=f"{above}/kills", environment=environment)


def expect_sound(stage: KillStage) -> None:
    stage.expect_sound(expected_digest(STEPS))
    found = [one for one in commits(stage.store) if isinstance(one, CommitRef)]
    assert found[-1].step == STEPS
    written = {write_of_key(info.key) for info in stage.store.list("steps")}
    assert written == {(one.step, one.write_id) for one in found}, stage.told()


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(2))
def test_a_hundred_random_kills_on_s3_change_no_bit_and_leave_nothing_in_the_bucket(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, _part: int
) -> None:
    let_in(monkeypatch, s3)
    ranks_from = attack(
        tmp_path,
        spec(steps=STEPS, step_ms=None, entrypoint="two_parts:main", checkpoint=f"store: '{ABOVE}'"),
        num_kills=50,
        expect=expect_sound,
        strike=also_aimed(kill_the_run_behind_a_commit),
        stage_of=partial(on_s3, s3),
    )
    assert ranks_from["memory"] > 0
    assert ranks_from["store"] > 0
