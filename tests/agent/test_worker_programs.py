"""What programs do at their beginning and their end, as the agent of their node tells it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from agent.scenes import play
from agent.stage import LIMIT_S, Stage, descendants, setup_for
from behemoth.base.ids import NodeId
from behemoth.wire.commands import StopGang
from behemoth.wire.reports import Beat, RanksFinished, RanksGone, RanksRestored, RanksUp, WorkerEnded


def test_a_gigabyte_of_output_leaves_a_small_log_with_the_newest_line(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.logged(1, 0, "the newest line")
        folder = tmp_path / "logs" / "attempt-0001"
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
        beats = [report for _, report in here.heard if isinstance(report, Beat)]
        assert len(beats) >= 2

    play(tmp_path, scene, setup_for(tmp_path, "shout", ranks=1, total_steps=3, megabytes=1024))


def test_a_worker_that_never_joins_shows_as_an_ageing_start(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.attempt == 1 and beat.phase_age_us > 300_000)
        assert not [report for _, report in here.heard if isinstance(report, RanksUp)]
        here.send(StopGang(fence=here.fence(1), reason="test"))
        await here.wait_for(RanksGone)

    play(tmp_path, scene, setup_for(tmp_path, "never_join"))


def test_a_preload_that_hangs_leaves_its_stacks_and_the_next_attempt_imports_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        async with asyncio.timeout(LIMIT_S):
            while not (tmp_path / "mark").exists():
                await asyncio.sleep(0.01)
        here.start_gang(2, dump_stacks=True)
        await here.wait_for(RanksUp, lambda report: report.attempt == 2)

    setup = setup_for(tmp_path, preload=("agent.sleeps_on_import",))
    environment = {**setup.environment, "SLEEPS_ON_IMPORT_MARK": str(tmp_path / "mark")}
    play(tmp_path, scene, msgspec.structs.replace(setup, environment=environment))
    said = capfd.readouterr().err + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "its imports of agent.sleeps_on_import" in said
    assert "in waits_for_a_lock" in said


def test_an_exception_ends_the_worker_with_1_and_its_traceback(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert (ended.exit_code, ended.signal) == (1, None)
        assert "the program is broken on purpose" in ended.last_lines

    play(tmp_path, scene, setup_for(tmp_path, "fail"))


def test_an_exit_with_0_before_the_last_step_is_told_as_an_end(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert (ended.exit_code, ended.signal) == (0, None)
        assert not [report for _, report in here.heard if isinstance(report, RanksFinished)]

    play(tmp_path, scene, setup_for(tmp_path, "leave_early"))


@pytest.mark.parametrize(
    ("preload", "text"),
    [(("agent.breaks_on_import",), "no way to import this"), (("agent.starts_a_thread",), "single thread")],
)
def test_a_preload_that_cannot_be_forked_from_is_named(tmp_path: Path, preload: tuple[str, ...], text: str) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert ended.exit_code == 1
        assert text in ended.last_lines

    play(tmp_path, scene, setup_for(tmp_path, preload=preload))


def test_a_command_is_executed_with_torchruns_environment(tmp_path: Path) -> None:
    script = (
        "import os; from agent.programs import train;"
        "print('env', os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['SECRET_OF_USER'],"
        " os.environ.get('BEHEMOTH_TOKEN'), flush=True); train()"
    )

    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        assert "env 1 2 s3cr3t None" in await here.logged(1, 1, "env")
        await here.save(20, "a1-1", 1, is_last=True)
        await here.wait_for(RanksFinished)

    play(tmp_path, scene, setup_for(tmp_path, total_steps=20, argv=(sys.executable, "-c", script)))


def test_the_token_reaches_neither_workers_nor_logs(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksUp)
        for pid in descendants(here.agents[NodeId("n0")].pid):
            assert b"a-token" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "a-token" not in (tmp_path / "n0.log").read_text()
        assert "s3cr3t" not in (tmp_path / "n0.log").read_text()

    play(tmp_path, scene)
