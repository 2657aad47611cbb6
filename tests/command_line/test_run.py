"""`behemoth run` on real processes: told as it goes, interrupted, resumed, repeated, looked at from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.paths import OWNER_KEY
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from command_line.cli_rig import LIMIT_S, PROGRAM, Ended, behemoth, environment, on_terminal, small_run, wait_for

STEPS = 120
DRILL = "kill rank 1 at step 35"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with a run that survived a kill, and what it said. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    file = small_run(folder, steps=STEPS)
    return folder, behemoth("run", file.name, "--runtime", "process", "--drill", DRILL, cwd=folder)


@contextmanager
def started(folder: Path, file: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that is under way; it has committed something."""
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [PROGRAM, "run", file.name, "--runtime", "process"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        wait_for(lambda: "Committed" in (folder / "err").read_text())
        yield process
    finally:
        process.kill()
        process.communicate()


def digest_of(ended: Ended) -> str:
    match = re.search(r"^digest: (sha256:[0-9a-f]{64})$", ended.out, re.MULTILINE)
    assert match is not None, ended.err
    return match[1]


def test_a_run_ends_with_its_summary_on_stdout_and_its_events_on_stderr(finished: tuple[Path, Ended]) -> None:
    _, ended = finished
    assert ended.code == 0, ended.err
    assert ended.out.startswith("run/small succeeded")
    assert "\x1b" not in ended.out + ended.err
    events = [line for line in ended.err.splitlines() if re.match(r"\d\d:\d\d:\d\d\.\d{3} [ !] attempt ", line)]
    for reason in ("RunOpened", "Drill", "WorkerFailed", "Restored", "Committed", "RunSucceeded"):
        assert any(f": {reason}: " in line for line in events), reason
    assert any(
        re.search(r"Committed: checkpoint of step \d+ .*; loss \d+\.\d{4} at step \d+$", line) for line in events
    )


def test_the_summary_has_a_row_for_the_fault_and_a_ledger_that_adds_up(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    assert re.search(r"^  signal +node-\d rank 1 .* ended with signal 9$", ended.out, re.MULTILINE)
    summary = json.loads((folder / "runs/small/summary.json").read_text())
    ledger = dict(summary["ledger"])
    wall_s, num_ranks = ledger.pop("wall_s"), ledger.pop("num_ranks")
    assert sum(ledger.values()) == pytest.approx(wall_s * num_ranks, abs=1e-3)
    assert digest_of(ended) == summary["digest"]


def test_a_run_that_succeeded_prints_its_summary_again_and_trains_nothing(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    journal = (folder / "runs/small/evidence.jsonl").read_bytes()
    again = behemoth("run", "small.yaml", cwd=folder)
    assert (again.code, again.out) == (0, ended.out)
    assert "succeeded before" in again.err
    assert (folder / "runs/small/evidence.jsonl").read_bytes() == journal
    document = json.loads(behemoth("run", "small.yaml", "-o", "json", cwd=folder).out)
    assert (document["apiVersion"], document["kind"]) == ("cli.behemoth.dev/v1", "RunSummary")
    assert (document["digest"], document["totalSteps"]) == (digest_of(ended), STEPS)


def test_a_run_that_succeeded_says_when_its_checkpoints_are_gone(tmp_path: Path, finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    store = tmp_path / "copy/runs/small/checkpoints"
    commits = sorted((store / "commits").iterdir())
    commits[-1].unlink()
    again = behemoth("run", "small.yaml", cwd=tmp_path / "copy")
    assert again.code == 0
    assert f"warning: checkpoint store {store}: expected the checkpoint of step {STEPS}, got that of step" in again.err
    assert digest_of(ended) not in again.out
    shutil.rmtree(store)
    gone = behemoth("run", "small.yaml", cwd=tmp_path / "copy")
    assert f"warning: checkpoint store {store}: expected the store of a run, got a place without one" in gone.err
    assert "not read back" in gone.out
    assert not store.exists()


def test_a_summary_of_an_earlier_stop_is_not_taken_for_that_of_the_end(
    tmp_path: Path, finished: tuple[Path, Ended]
) -> None:
    """As after a kill between the run's end and its summary."""
    folder, ended = finished
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    summary = tmp_path / "copy/runs/small/summary.json"
    stale = {**json.loads(summary.read_text()), "outcome": "suspended", "digest": "sha256:of an older state"}
    summary.write_text(json.dumps(stale))
    again = behemoth("run", "small.yaml", "--runtime", "process", cwd=tmp_path / "copy")
    assert again.code == 0, again.err
    assert digest_of(again) == digest_of(ended)
    assert json.loads(summary.read_text())["outcome"] == "succeeded"


def test_another_run_in_the_same_directory_is_refused_with_what_differs(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    other = small_run(folder, name="other", steps=STEPS + 1)
    ended = behemoth("run", other.name, "--dir", "runs/small", cwd=folder)
    assert ended.code == 2
    assert 'metadata.name: "small" -> "other"' in ended.err
    assert f"spec.workload.steps: {STEPS} -> {STEPS + 1}" in ended.err
    assert "code: run-differs" in ended.err


def test_status_and_get_need_nobody_alive(finished: tuple[Path, Ended]) -> None:
    folder, _ = finished
    status = behemoth("status", cwd=folder)
    assert status.code == 0
    assert status.out.startswith("run/small succeeded\n")
    assert re.search(rf"^step: +{STEPS} of {STEPS} \(100.0%\)$", status.out, re.MULTILINE)
    document = json.loads(behemoth("status", "run/small", "-o", "json", cwd=folder).out)
    assert (document["state"], document["isLive"], document["step"]) == ("succeeded", False, STEPS)
    assert behemoth("get", "runs", "-o", "name", cwd=folder).out == "run/small\n"
    assert behemoth("get", "nodes", "small", "-o", "name", cwd=folder).out == "node/node-0\nnode/node-1\nnode/node-2\n"
    names = behemoth("get", "ckpt", "runs/small", "-o", "name", cwd=folder).out
    assert names.splitlines()[1:] == [f"checkpoint/{STEPS}"]
    runs = yaml.safe_load(behemoth("get", "runs", "-o", "yaml", cwd=folder).out)
    assert [item["name"] for item in runs["items"]] == ["small"]


def test_one_interrupt_saves_and_stops_and_the_same_command_goes_on_to_the_same_state(
    tmp_path: Path, finished: tuple[Path, Ended]
) -> None:
    file = small_run(tmp_path, steps=STEPS)
    with started(tmp_path, file) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LIMIT_S)
    told = (tmp_path / "err").read_text()
    if "RunSucceeded" not in told:  # the gang may have been faster than the interrupt
        assert process.returncode == 130
        assert "SIGINT: saving, then stopping" in told
        assert out.startswith("run/small suspended")
        assert behemoth("status", cwd=tmp_path).out.startswith("run/small suspended")
    resumed = behemoth("run", file.name, "--runtime", "process", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert digest_of(resumed) == digest_of(finished[1])


def test_a_live_run_keeps_others_out_but_can_be_looked_at(tmp_path: Path) -> None:
    file = small_run(tmp_path, steps=100_000)
    with started(tmp_path, file) as process:
        locked = behemoth("run", file.name, "--runtime", "process", cwd=tmp_path)
        assert (locked.code, "code: run-locked" in locked.err) == (1, True)
        status = json.loads(behemoth("status", "-o", "json", cwd=tmp_path).out)
        assert (status["isLive"], status["pid"]) == (True, process.pid)
        assert behemoth("get", "nodes", cwd=tmp_path).out.count(" working ") == 2


def test_two_interrupts_stop_at_once_and_leave_no_process(tmp_path: Path) -> None:
    file = small_run(tmp_path, steps=100_000)
    with started(tmp_path, file) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "SIGINT" in (tmp_path / "err").read_text())
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert out == "" or out.startswith("run/small suspended")  # the first may have been done by then
    wait_for(lambda: not _processes_with(str(tmp_path)))


def test_a_termination_is_taken_as_one_interrupt_but_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    file = small_run(tmp_path, steps=100_000)
    with started(tmp_path, file) as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 101
    assert out.startswith("run/small suspended")
    assert re.search(r"^run/small is saved at step \d+; ", (tmp_path / "err").read_text(), re.MULTILINE)


def test_a_terminal_sees_the_run_live_and_then_its_summary(tmp_path: Path) -> None:
    file = small_run(tmp_path, steps=40)
    ended = on_terminal("run", file.name, "--runtime", "process", cwd=tmp_path)
    assert ended.code == 0, ended.out
    assert re.search(r"step \d+/40 \[[#.]{30}\]", ended.out)
    assert "node-2" in ended.out
    _, _, last = re.sub(r"\x1b\[[0-9;]*m", "", ended.out).rpartition("step 40/40 [")
    assert (last.count(" released"), last.count(" lost")) == (3, 0)
    assert "\x1b[?25h" in ended.out  # the cursor is given back
    assert "digest: sha256:" in ended.out.rpartition("\x1b[?25h")[2]


def test_a_program_that_cannot_run_fails_the_run_and_its_output_can_be_read(tmp_path: Path) -> None:
    document = yaml.safe_load(small_run(tmp_path, name="broken").read_text())
    work = document["spec"]["workload"]
    document["spec"]["workload"] = {
        "command": ["sh", "-c", "echo boom from the program; exit 7"],
        "steps": work["steps"],
    }
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(document))
    ended = behemoth("run", file.name, "--runtime", "process", cwd=tmp_path)
    assert ended.code == 100, ended.err
    assert ended.out.startswith("run/broken failed")
    assert "error: run/broken failed: " in ended.err
    assert "code: run-failed" in ended.err
    logs = behemoth("logs", cwd=tmp_path)
    assert (logs.code, "boom from the program" in logs.out) == (0, True)


def test_a_ray_that_is_not_there_is_told_within_seconds(tmp_path: Path) -> None:
    file = small_run(tmp_path)
    ended = behemoth("run", file.name, "--address", "127.0.0.1:1", cwd=tmp_path)
    assert ended.code == 1
    assert "error: ray at 127.0.0.1:1: " in ended.err
    assert "hint: " in ended.err


def _processes_with(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = word.encode() in path.read_bytes()
        except OSError:
            continue
        if is_ours and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def test_a_start_that_was_refused_leaves_its_directory_to_a_corrected_file(tmp_path: Path) -> None:
    file = small_run(tmp_path, steps=5)
    text = yaml.safe_load(file.read_text())
    wrong = {**text["spec"], "checkpoint": {**text["spec"].get("checkpoint", {}), "store": "/proc/no-such-store"}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**text, "spec": wrong}))
    refused = behemoth("run", "wrong.yaml", "--runtime", "process", cwd=tmp_path)
    assert refused.code not in (0, 100), refused.err
    assert "\nhint: " in refused.err
    corrected = behemoth("run", file.name, "--runtime", "process", cwd=tmp_path)
    assert corrected.code == 0, corrected.err


def test_a_run_that_takes_over_a_store_keeps_what_it_saves_at_a_step_that_was_rejected_there(tmp_path: Path) -> None:
    """Both runs save that step first, so that each would call its write a1-1."""
    file = small_run(tmp_path, steps=1)
    text = file.read_text().replace("  checkpoint:\n", "  checkpoint:\n    store: shared\n")
    file.write_text(text)
    ended = behemoth("run", file.name, "--runtime", "process", "--dir", "one", cwd=tmp_path)
    assert ended.code == 0, ended.err
    store = LocalStore(tmp_path / "shared" / "small")
    (first,) = commits(store)
    assert isinstance(first, CommitRef)
    reject(store, first, "it did not restore")
    store.delete([OWNER_KEY])
    ended = behemoth("run", file.name, "--runtime", "process", "--dir", "two", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert [(one.step, one.write_id) for one in commits(store) if isinstance(one, CommitRef)] == [(1, "a1-2")]
