"""`behemoth ckpt pin`, `unpin` and `gc`, on a store that a run owns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from behemoth.app.clean_store import CleanPlan, plan_clean
from behemoth.app.import_lock import clearing, importing
from behemoth.app.run_directory import RunDirectory
from behemoth.base.errors import Conflict, Unavailable
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.gc import LATE_S, execute
from behemoth.checkpoint.marker import Marker
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.paths import OWNER_KEY
from behemoth.checkpoint.verify import verify
from behemoth.policy.retention import HOUR_US, Retention
from behemoth.ports import SavesTo
from behemoth.spec.decode import decode_run
from behemoth.spec.document import to_document
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from behemoth_cli import root
from behemoth_cli.commands import ckpt_gc
from behemoth_cli.exits import Exit
from behemoth_cli.views.care import clean_page
from checkpoint.late_bucket import Late
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import NUMPY_RUN, matches_golden, on_screen, piped
from reconcile.player import training

STEPS = (10, 20, 30, 40, 50)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """The directory of a run that nobody leads, with five checkpoints an hour apart and what a sixth left."""
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(tmp_path / "runs" / "small")
    directory.open()
    identity = directory.found("small", None)
    text = NUMPY_RUN.read_text().replace("      steps: 20\n", "      steps: 20\n    retention: {keep_last: 3}\n")
    directory.write_document(yaml.safe_dump(to_document(decode_run(text.encode(), source="run.yaml"))))
    directory.close()
    with closing(LocalStore(directory.checkpoints)) as store:
        owner = Owner.of_run(identity.run_uid, name="small", directory=str(directory.path))
        take(store, owner, url=str(directory.checkpoints))
        for number, step in enumerate(STEPS):
            save(store, small_layout(), step=step, write_id=f"a1-{step}", committed_us=number * HOUR_US)
        save(store, small_layout(), step=60, write_id="a1-60", publish=False)
    yield directory
    directory.close()


def ckpt(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def steps_of(directory: RunDirectory) -> list[int]:
    with closing(LocalStore(directory.checkpoints)) as store:
        found = commits(store)
        assert all(verify(store, one, threads=1, deep=True).is_intact for one in found)
        return [int(one.step) for one in found if one.step is not None]


def files_of(directory: RunDirectory) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in directory.checkpoints.rglob("*") if file.is_file()}


def verdicts(text: str) -> dict[int, list[str]]:
    return {one["step"]: one["reasons"] for one in json.loads(text)["checkpoints"]}


def test_gc_tells_its_plan_by_the_runs_own_file_and_deletes_nothing(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(directory)
    code, text, noted = ckpt(capsys, "gc", "run/small", "-o", "json")
    plan = json.loads(text)
    assert code == 0
    assert plan["retention"] == {"keepLast": 3, "everySteps": None, "hourly": 0, "daily": 0}
    assert verdicts(text) == {10: [], 20: [], 30: ["last"], 40: ["last"], 50: ["last"]}
    assert (plan["numDropped"], plan["numUnfinishedWrites"], plan["isExecuted"]) == (2, 1, False)
    assert plan["numBytes"] == sum(
        len(data) for name, data in before.items() for step in (10, 20, 60) if f"/{step:09d}-" in name
    )
    assert "--execute" in noted
    assert files_of(directory) == before


def test_gc_with_execute_deletes_what_its_plan_said_and_what_unfinished_writes_left(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, noted = ckpt(capsys, "gc", "run/small", "--execute")
    assert code == 0
    assert text.splitlines()[-1].startswith("deleted 2 of 5 checkpoints and what 1 unfinished write left: ")
    assert "--execute" not in noted
    assert steps_of(directory) == [30, 40, 50]
    assert not [name for name in files_of(directory) if any(f"/{step:09d}-" in name for step in (10, 20, 60))]
    code, text, _ = ckpt(capsys, "gc", "run/small", "--execute")
    assert text.splitlines()[-1] == "deleted 0 of 3 checkpoints: 0 B"


@pytest.mark.usefixtures("directory")
def test_an_option_beats_the_file_and_leaves_the_rest_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = ckpt(capsys, "gc", "run/small", "--hourly", "4", "--every-steps", "40", "-o", "json")[1]
    assert verdicts(text) == {
        10: [],
        20: ["hourly"],
        30: ["last", "hourly"],
        40: ["last", "milestone", "hourly"],
        50: ["last", "hourly"],
    }
    text = ckpt(capsys, "gc", "run/small", "--keep-last", "2", "--daily", "9", "-o", "json")[1]
    assert verdicts(text) == {10: [], 20: [], 30: [], 40: ["last"], 50: ["last", "daily"]}


def test_a_pinned_checkpoint_survives_gc_until_it_is_unpinned(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ckpt(capsys, "pin", "run/small", "--step", "10", "--reason", "the paper's")[:2] == (
        0,
        "checkpoint/10 pinned\n",
    )
    assert ckpt(capsys, "pin", "run/small", "--step", "10")[1] == "checkpoint/10 was pinned already\n"
    items = json.loads(ckpt(capsys, "list", "run/small", "-o", "json")[1])["items"]
    assert [(item["step"], item["pinned"], item["pinReason"]) for item in items][:2] == [
        (10, True, "the paper's"),
        (20, False, None),
    ]
    shown = ckpt(capsys, "show", "run/small", "--step", "10")[1]
    assert "\npinned:    the paper's\n" in shown
    assert "\npinned:    no\n" in ckpt(capsys, "show", "run/small", "--step", "20")[1]
    ckpt(capsys, "gc", "run/small", "--execute")
    assert steps_of(directory) == [10, 30, 40, 50]
    assert ckpt(capsys, "unpin", "run/small", "--step", "10")[:2] == (0, "checkpoint/10 unpinned\n")
    ckpt(capsys, "gc", "run/small", "--execute")
    assert steps_of(directory) == [30, 40, 50]


def test_a_pinned_checkpoint_whose_commit_was_lost_is_listed_as_gone_and_fails_the_check(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("10", "20"):
        ckpt(capsys, "pin", "run/small", "--step", step, "--reason", "the paper's")
    (directory.checkpoints / "commits" / "000000010.json").unlink()
    (directory.checkpoints / "commits" / "000000020.json").write_bytes(b"rubbish")
    items = json.loads(ckpt(capsys, "list", "run/small", "-o", "json")[1])["items"]
    assert [(item["step"], item["writeId"], item["state"], item["pinReason"]) for item in items][:3] == [
        (10, "a1-10", "gone", "the paper's"),
        (20, None, "damaged", "the paper's"),
        (30, "a1-30", "ok", None),
    ]
    for how in (("--fast",), ("--fast", "--step", "50")):
        code, text, _ = ckpt(capsys, "verify", "run/small", *how)
        assert code == 3
        assert text.startswith("store damaged: 1 place\n")
        assert "expected the checkpoint of step 10, write a1-10, which is pinned, got no commit of it" in text
    ckpt(capsys, "unpin", "run/small", "--step", "10")
    assert ckpt(capsys, "verify", "run/small", "--fast", "--step", "50")[0] == 0
    assert len(json.loads(ckpt(capsys, "list", "run/small", "-o", "json")[1])["items"]) == 4


def test_a_dry_run_of_pin_and_unpin_changes_nothing(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(directory)
    assert ckpt(capsys, "pin", "run/small", "--step", "10", "--dry-run")[1] == "checkpoint/10 would be pinned\n"
    assert files_of(directory) == before
    ckpt(capsys, "pin", "run/small", "--step", "10")
    pinned = files_of(directory)
    assert ckpt(capsys, "unpin", "run/small", "--step", "10", "--dry-run")[1] == "checkpoint/10 would be unpinned\n"
    assert files_of(directory) == pinned != before
    assert "was pinned already" in ckpt(capsys, "pin", "run/small", "--step", "10", "--dry-run")[1]


@pytest.mark.usefixtures("directory")
def test_pin_and_unpin_tell_what_they_did_as_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> tuple[Any, ...]:
        document = json.loads(ckpt(capsys, *words, "run/small", "--step", "10", "-o", "json")[1])
        assert (document["kind"], document["step"], document["writeIds"]) == ("CheckpointPin", 10, ["a1-10"])
        return document["isPinned"], document["isChanged"], document["isDryRun"]

    assert told("pin", "--dry-run") == (True, False, True)
    assert told("pin") == (True, True, False)
    assert told("pin") == (True, False, False)
    assert told("unpin", "--dry-run") == (False, False, True)
    assert told("unpin") == (False, True, False)


def test_what_is_not_there_or_not_pinned_is_not_found(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = ckpt(capsys, "pin", "run/small", "--step", "15")
    assert (code, "there are checkpoints of step 10, 20, 30, 40, 50" in told) == (102, True)
    code, _, told = ckpt(capsys, "unpin", "run/small", "--step", "10")
    assert (code, "nothing is pinned there" in told) == (102, True)
    ckpt(capsys, "pin", "run/small", "--step", "20")
    assert "pinned are step 20" in ckpt(capsys, "unpin", "run/small", "--step", "10")[2]
    assert not (directory.checkpoints / "pins" / "000000010-a1-10.json").exists()


def test_a_damaged_pin_keeps_its_checkpoint_and_is_damage_to_verify(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt(capsys, "pin", "run/small", "--step", "10")
    file = directory.checkpoints / "pins" / "000000010-a1-10.json"
    whole = file.read_bytes()
    for byte in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[byte] ^= 1
        file.write_bytes(flipped)
        code, text, _ = ckpt(capsys, "verify", "run/small", "--fast", "--step", "50")
        assert (code, "pins/000000010-a1-10.json" in text) == (3, True), byte
    assert "yes" in ckpt(capsys, "list", "run/small")[1].splitlines()[1]
    ckpt(capsys, "gc", "run/small", "--execute")
    assert steps_of(directory) == [10, 30, 40, 50]


@pytest.mark.parametrize("where", ["run/small", "runs/small", "runs/small/checkpoints"])
def test_nothing_is_deleted_while_the_run_is_alive_and_the_plan_says_so(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    before = files_of(directory)
    directory.open()
    code, _, told = ckpt(capsys, "gc", where, "--keep-last", "2", "--execute")
    assert (code, "code: run-locked" in told) == (1, True)
    code, text, told = ckpt(capsys, "gc", where, "--keep-last", "2", "-o", "json")
    assert (code, json.loads(text)["numUnfinishedWrites"]) == (0, 0)
    assert "run/small is alive: --execute would be refused" in told
    assert files_of(directory) == before
    directory.close()
    assert ckpt(capsys, "gc", where, "--keep-last", "2", "--execute")[0] == 0
    assert steps_of(directory) == [40, 50]


def test_while_gc_deletes_no_run_can_begin(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from behemoth_cli.commands import ckpt_gc

    locked: list[int] = []
    whole = execute

    def watched(*plan: Any) -> Any:
        locked.append(root.run(["run", str(NUMPY_RUN), "--dir", str(directory.path), "--runtime", "process"]))
        return whole(*plan)

    monkeypatch.setattr(ckpt_gc, "execute", watched)
    assert ckpt(capsys, "gc", "run/small", "--execute")[0] == 0
    assert locked == [1]


def test_a_run_whose_store_was_taken_over_has_no_say_in_what_is_kept(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LocalStore(directory.checkpoints)) as store:
        store.delete([OWNER_KEY])
        take(store, Owner.of_run(RunUid("another"), name="small", directory="/elsewhere/runs/small"), url="s")
    before = files_of(directory)
    for how in ([], ["--execute"]):
        code, _, told = ckpt(capsys, "gc", "run/small", *how)
        assert code == 1
        assert "got that of run/small in /elsewhere/runs/small" in told
        assert "code: store-owned" in told
    assert files_of(directory) == before


def test_of_a_run_that_is_not_to_be_found_nobody_can_tell_whether_it_is_alive(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "elsewhere" / "store"
    shutil.copytree(directory.checkpoints, store)
    shutil.rmtree(directory.path)
    code, _, told = ckpt(capsys, "gc", str(store), "--keep-last", "2", "--execute")
    assert (code, "code: owner-unknown" in told) == (1, True)
    assert "is not to be found at" in ckpt(capsys, "gc", str(store), "--keep-last", "2")[2]
    (store / "owner" / "run.json").unlink()
    code, _, told = ckpt(capsys, "gc", str(store), "--keep-last", "2", "--execute")
    assert (code, "belongs to no run" in told) == (0, True)
    assert (store / "steps" / "000000060-a1-60").exists()  # whose else could be writing it
    assert sorted(file.name for file in (store / "commits").iterdir()) == ["000000040.json", "000000050.json"]


def test_what_a_killed_import_left_goes_when_somebody_says_so_and_no_import_is_under_way(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "imports"
    with closing(LocalStore(store)) as made:
        for step in (1, 2):
            save(made, small_layout(), step=step, write_id=f"import-{step}")
        save(made, small_layout(), step=3, write_id="import-3", publish=False)
    gc = ("gc", str(store), "--keep-last", "2")
    code, text, told = ckpt(capsys, *gc, "--execute")
    assert (code, text.splitlines()[-1]) == (0, "deleted 0 of 2 checkpoints: 0 B")
    assert "hint: --unfinished takes what imports left" in told
    with importing(store):
        code, _, told = ckpt(capsys, *gc, "--unfinished", "--execute")
        assert (code, "code: store-busy" in told) == (1, True)
        with importing(store):  # two imports do not mind each other
            pass
    with clearing(store), pytest.raises(Conflict, match="expected no gc to be running there"), importing(store):
        pass
    code, text, _ = ckpt(capsys, *gc, "--unfinished", "--execute")
    assert code == 0
    assert text.splitlines()[-1].startswith("deleted 0 of 2 checkpoints and what 1 unfinished write left: ")
    assert sorted(folder.name for folder in (store / "steps").iterdir()) == ["000000001-import-1", "000000002-import-2"]
    code, _, told = ckpt(capsys, "gc", "run/small", "--unfinished")
    assert (code, "code: option-without-effect" in told) == (2, True)
    assert steps_of(directory) == list(STEPS)


def test_a_run_that_takes_the_store_while_gc_looks_around_loses_nothing_of_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "imports"
    with closing(LocalStore(place)) as store:
        for step in (1, 2, 3):
            save(store, small_layout(), step=step, write_id=f"import-{step}")

    def plan_late(
        store: SavesTo, retention: Retention, *, takes_rubbish: bool, unsure: Callable[[WriteId], bool]
    ) -> CleanPlan:
        take(store, Owner.of_run(RunUid("u1"), name="big", directory="/runs/big"), url=str(place))
        save(store, small_layout(), step=4, write_id="a1-1", publish=False)
        return plan_clean(store, retention, takes_rubbish=takes_rubbish, unsure=unsure)

    monkeypatch.setattr(ckpt_gc, "plan_clean", plan_late)
    code, _, told = ckpt(capsys, "gc", str(place), "--keep-last", "2", "--unfinished", "--execute")
    assert (code, "expected it to belong to no run, got it taken by run/big meanwhile" in told) == (1, True)
    assert sum(file.is_file() for file in (place / "steps" / "000000004-a1-1").rglob("*")) > 0
    assert len(list((place / "commits").iterdir())) == 3


class Bucket(Late):
    """As a command opens one."""

    def close(self) -> None:
        """Its objects stay."""


def test_a_commit_that_a_killed_leader_has_sent_and_that_arrives_behind_gc_counts_for_nobody(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leader, store, identity = training(), Bucket(), directory.identity()
    assert identity is not None
    directory.journal.write_bytes(leader.journal)
    take(store, Owner.of_run(identity.run_uid, name="small", directory=str(directory.path)), url="s3://bucket/small")
    with pytest.raises(Unavailable):
        save(store, small_layout(), step=leader.save.step, write_id=leader.save.write_id)
    monkeypatch.setattr(ckpt_gc, "open_store", lambda _url: store)
    assert ckpt(capsys, "gc", "run/small", "--execute")[0] == 0
    assert list(store.list("steps")) == []
    store.arrive()
    assert len(list(store.list("commits"))) == 1
    assert commits(store) == []


def late_in(monkeypatch: pytest.MonkeyPatch, owner: Owner | None = None) -> Bucket:
    """One checkpoint, and a write that is whole but for its commit, which is on its way."""
    store = Bucket()
    store.is_late = False
    save(store, small_layout(), step=1, write_id="import-1")
    if owner is not None:
        take(store, owner, url="s3://bucket/second/small")
    store.is_late = True
    with pytest.raises(Unavailable):
        save(store, small_layout(), step=2, write_id="import-2")
    monkeypatch.setattr("behemoth.storage.open.open_store", lambda _url: store)
    monkeypatch.setattr(ckpt_gc, "open_store", lambda _url: store)
    return store


def counts_for_nobody(store: Bucket) -> bool:
    """Whether the late commit of a write that is gone has arrived and is no checkpoint."""
    assert {info.key.split("/")[1] for info in store.list("steps")} == {"000000001-import-1"}
    store.arrive()
    assert len(list(store.list("commits"))) == 2
    return [one.step for one in commits(store)] == [1]


def test_a_commit_of_a_killed_import_that_arrives_behind_gc_counts_for_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = late_in(monkeypatch)
    gc = ("gc", "s3://bucket/imports", "--keep-last", "2", "--unfinished")
    assert ckpt(capsys, *gc)[0] == 0
    assert list(store.list("rejected")) == []  # a plan writes nothing
    assert ckpt(capsys, *gc, "--execute")[0] == 0
    assert counts_for_nobody(store)


@pytest.mark.parametrize("drain", [None, "s3://bucket/second/small"])
def test_a_commit_of_a_copy_to_another_store_of_a_run_that_arrives_behind_gc_counts_for_nobody(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drain: str | None
) -> None:
    """The run's journal knows its own saves alone, whether or not its file names that store."""
    known = directory.identity()
    assert known is not None
    directory.found("small", None, drain=drain, run_uid=known.run_uid)
    store = late_in(monkeypatch, Owner.of_run(known.run_uid, name="small", directory=str(directory.path)))
    assert ckpt(capsys, "gc", "s3://bucket/second/small", "--keep-last", "2", "--execute")[0] == 0
    assert counts_for_nobody(store)


@pytest.mark.parametrize("is_in_file", [False, True])
def test_in_a_runs_own_store_a_write_that_its_journal_does_not_name_is_not_rejected(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_in_file: bool
) -> None:
    """Its commit may have been there and be lost, and what is rejected there is rejected where it was drained to. It
    goes once no commit of it can arrive. The file alone names the store where the directory is of an early release."""
    known = directory.identity()
    assert known is not None
    if is_in_file:
        text = directory.document.read_text().replace("checkpoint:\n", "checkpoint:\n    store: s3://bucket/first\n", 1)
        directory.write_document(text)
    directory.found("small", None if is_in_file else "s3://bucket/first/numpy", run_uid=known.run_uid)
    store = late_in(monkeypatch, Owner.of_run(known.run_uid, name="small", directory=str(directory.path)))
    for age_s, kept in ((LATE_S - 1, {"000000001-import-1", "000000002-import-2"}), (1, {"000000001-import-1"})):
        store.now_s += age_s
        assert ckpt(capsys, "gc", "s3://bucket/first/numpy", "--keep-last", "2", "--execute")[0] == 0
        assert {info.key.split("/")[1] for info in store.list("steps")} == kept
    assert list(store.list("rejected")) == []


def test_a_run_directory_that_was_moved_is_still_the_owners(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    directory.path.rename(moved)
    assert ckpt(capsys, "gc", str(moved / "checkpoints"), "--keep-last", "2", "--execute")[0] == 0
    assert steps_of(RunDirectory(moved)) == [40, 50]


def test_a_copy_of_a_live_runs_directory_deletes_nothing_from_the_runs_store(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity, store = directory.identity(), tmp_path / "elsewhere" / "small"
    assert identity is not None
    store.parent.mkdir()
    directory.checkpoints.rename(store)
    directory.found("small", str(store), run_uid=identity.run_uid)
    copy = tmp_path / "copy"
    shutil.copytree(directory.path, copy)
    before = sorted(store.rglob("*"))
    directory.open()
    code, _, told = ckpt(capsys, "gc", str(copy), "--keep-last", "2", "--execute")
    assert (code, "code: run-locked" in told) == (1, True)
    assert sorted(store.rglob("*")) == before
    assert "is alive: --execute would be refused" in ckpt(capsys, "gc", str(copy))[2]
    directory.close()
    assert ckpt(capsys, "gc", str(copy), "--keep-last", "2", "--execute")[0] == 0
    assert sorted(file.name for file in (store / "commits").iterdir()) == ["000000040.json", "000000050.json"]


def test_a_copy_that_has_a_store_within_is_cleaned_up_whatever_the_first_one_does(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(directory.path, copy.path)
    directory.open()
    assert ckpt(capsys, "gc", str(copy.path), "--keep-last", "2", "--execute")[0] == 0
    assert (steps_of(copy), steps_of(directory)) == ([40, 50], list(STEPS))
    copy.open()
    code, _, told = ckpt(capsys, "gc", str(copy.checkpoints), "--keep-last", "2", "--execute")
    assert (code, "code: run-locked" in told) == (1, True)


def test_without_a_run_somebody_has_to_say_how_many_are_kept(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = ckpt(capsys, "gc", str(directory.checkpoints))
    assert (code, "code: retention-missing" in told) == (2, True)
    assert ckpt(capsys, "gc", str(directory.checkpoints), "--keep-last", "1")[0] == 2


def test_a_record_that_cannot_be_read_is_kept_and_said(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory.checkpoints / "commits" / "000000010.json").write_bytes(b"rubbish")
    text = ckpt(capsys, "gc", "run/small", "--execute")[1]
    assert "  10  -" in text
    assert "keep     unusable: commits/000000010.json" in text
    assert (directory.checkpoints / "steps" / "000000010-a1-10").exists()
    assert not (directory.checkpoints / "steps" / "000000020-a1-20").exists()


def test_a_link_among_the_records_is_told_by_every_verb_and_keeps_none_from_the_others(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = directory.checkpoints / "commits" / "000000010.json"
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    code, text, _ = ckpt(capsys, "list", "run/small", "-o", "json")
    states = {item["step"]: (item["state"], item["reason"]) for item in json.loads(text)["items"]}
    assert code == 0
    assert states.pop(10) == (
        "unreadable",
        f"{directory.checkpoints}: read commits/000000010.json: expected no link on the way, got a symbolic link",
    )
    assert states == dict.fromkeys(STEPS[1:], ("ok", None))
    code, text, _ = ckpt(capsys, "verify", "run/small", "-o", "json")
    reports = {one["step"]: one for one in json.loads(text)["checkpoints"]}
    assert (code, [step for step, one in reports.items() if not one["isIntact"]]) == (3, [10])
    assert [one["kind"] for one in reports[10]["problems"]] == ["unreadable"]
    assert ckpt(capsys, "show", "run/small")[0] == 0
    assert ckpt(capsys, "show", "run/small", "--step", "10")[0] == Exit.DENIED
    assert ckpt(capsys, "pin", "run/small", "--step", "50")[0] == 0
    assert "unusable: commits/000000010.json" in ckpt(capsys, "gc", "run/small", "--execute")[1]
    record.unlink()
    (tmp_path / "elsewhere").rename(record)
    assert steps_of(directory) == [10, 30, 40, 50]


def test_the_plan_for_a_pipe_a_terminal_and_a_script() -> None:
    store = MemoryStore()
    for number, step in enumerate(STEPS):
        save(store, small_layout(), step=step, write_id=f"a1-{step}", committed_us=number * HOUR_US)
    save(store, small_layout(), step=60, write_id="a1-60", publish=False)
    store.create("pins/000000010-a1-10.json", Marker.of(Step(10), WriteId("a1-10"), reason="").encode())
    store.create("commits/000000005.json", b"rubbish")
    plan = plan_clean(store, Retention(keep_last=2, every_steps=25, hourly=2), takes_rubbish=True)
    page = clean_page(plan, is_executed=False, spared=(), now_us=5 * HOUR_US)
    matches_golden(piped(page), "gc.txt")
    matches_golden(on_screen(page, 90), "gc.terminal.txt")
    matches_golden(piped(page, "json"), "gc.json")


def test_what_was_pinned_after_the_plan_counts_as_kept() -> None:
    store = MemoryStore()
    for step in STEPS:
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    plan = plan_clean(store, Retention(keep_last=3), takes_rubbish=True)
    spared = {(Step(10), WriteId("a1-10"))}
    body = clean_page(plan, is_executed=True, spared=spared, now_us=0).body
    assert (body["numDropped"], verdicts(json.dumps(body))[10]) == (1, ["pinned"])
    assert body["numBytes"] == sum(info.size_bytes for info in store.list("steps/000000020-a1-20"))


def test_a_store_that_cannot_be_made_is_refused_with_its_name_and_a_way_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    store = tmp_path / "file" / "store"
    with pytest.raises(Conflict, match=f"store {store}: .*both an object and a folder"), importing(store):
        pass
