"""`behemoth ckpt drain`: one checkpoint to another store and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from behemoth.app.run_directory import RunDirectory
from behemoth.base.errors import Invalid
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.draining import Copied, copy_checkpoint
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.owner import Owner, read_owner, take
from behemoth.checkpoint.paths import DELETING
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore, SavesTo
from behemoth.spec.decode import decode_run
from behemoth.spec.document import to_document
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_store
from behemoth_cli import root
from behemoth_cli.commands import ckpt_drain
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import NUMPY_RUN
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """The directory of a run that nobody leads, with two checkpoints."""
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(tmp_path / "runs" / "small")
    directory.open()
    identity = directory.found("small", None)
    directory.write_document(yaml.safe_dump(to_document(decode_run(NUMPY_RUN.read_bytes(), source="run.yaml"))))
    directory.close()
    with closing(LocalStore(directory.checkpoints)) as store:
        owner = Owner.of_run(identity.run_uid, name="small", directory=str(directory.path))
        take(store, owner, url=str(directory.checkpoints))
        for step in (10, 20):
            save(store, small_layout(), step=step, write_id=f"a1-{step}")
    yield directory
    directory.close()


def drain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", "drain", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def steps_of(path: Path) -> list[int]:
    with closing(LocalStore(path)) as store:
        found = commits(store)
        assert all(verify(store, one, threads=1, deep=True).is_intact for one in found)
        return [int(one.step) for one in found if isinstance(one, CommitRef)]


def test_the_newest_checkpoint_is_copied_and_the_store_is_the_runs_then(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = drain(capsys, "run/small", "--to", str(tmp_path / "safe"), "-o", "json")
    told = json.loads(out)
    assert code == 0
    assert (told["step"], told["writeId"], told["foundBytes"]) == (20, "a1-20", 0)
    assert told["copiedBytes"] > 0
    assert steps_of(tmp_path / "safe") == [20]
    with closing(LocalStore(tmp_path / "safe")) as store:
        owner, identity = read_owner(store), directory.identity()
        assert owner is not None
        assert identity is not None
        assert owner.run_uid == identity.run_uid


@pytest.mark.usefixtures("directory")
def test_a_second_time_it_says_that_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drain(capsys, "run/small", "--to", str(tmp_path / "safe"))[0] == 0
    code, out, _ = drain(capsys, "run/small", "--to", str(tmp_path / "safe"))
    assert (code, out) == (0, f"checkpoint/20 is in {tmp_path / 'safe'} already\n")


def test_a_checkpoint_goes_to_a_bucket_and_back_into_the_run_that_lost_it(
    directory: RunDirectory, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_in(monkeypatch, s3)
    url = f"s3://{BUCKET}/drained/verb"
    assert drain(capsys, "run/small", "--to", url, "--step", "10", "--rate", "1GB")[0] == 0
    with closing(LocalStore(directory.checkpoints)) as store:
        store.delete([info.key for folder in ("commits", "steps") for info in store.list(folder)])
    assert steps_of(directory.checkpoints) == []
    code, out, _ = drain(capsys, url, "--to", "run/small")
    assert code == 0
    assert out.startswith(f"checkpoint/10 copied to {directory.checkpoints}: ")
    assert steps_of(directory.checkpoints) == [10]


@pytest.mark.usefixtures("directory")
def test_a_bucket_is_tried_out_before_anything_is_copied_there(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unfit(_store: object, *, url: str) -> None:
        raise Invalid(f"{url}: expected it to heed conditions, got otherwise", code="incoherent-store")

    let_in(monkeypatch, s3)
    monkeypatch.setattr("behemoth_cli.commands.ckpt_drain.probe_bucket", unfit)
    url = f"s3://{BUCKET}/drained/unfit"
    code, _, err = drain(capsys, "run/small", "--to", url)
    assert (code, "code: incoherent-store" in err) == (2, True)
    with closing(open_store(url)) as store:
        assert list(store.list("")) == []


@pytest.mark.usefixtures("directory")
def test_the_store_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(LocalStore(tmp_path / "theirs")) as store:
        take(store, Owner.of_run(RunUid("theirs"), name="other", directory="/elsewhere"), url="theirs")
    code, _, err = drain(capsys, "run/small", "--to", str(tmp_path / "theirs"))
    assert code == 1
    assert "code: store-owned" in err
    assert steps_of(tmp_path / "theirs") == []


@pytest.mark.usefixtures("directory")
def test_a_store_that_cannot_take_the_checkpoint_stays_whose_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LocalStore(tmp_path / "taken")) as store:
        save(store, small_layout(), step=20, write_id="import-1")
        code, _, err = drain(capsys, "run/small", "--to", str(tmp_path / "taken"))
        assert (code, "code: commit-taken" in err) == (1, True)
        assert read_owner(store) is None


def leave_in(safe: Path, directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 10 is in the store `safe` and not in the run's own any more, and the run is alive."""
    assert drain(capsys, "run/small", "--to", str(safe), "--step", "10")[0] == 0
    with closing(LocalStore(directory.checkpoints)) as store:
        store.delete([info.key for info in store.list("commits") if "000000010" in info.key])
    directory.open()


def test_a_run_that_is_alive_gets_nothing(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_in(tmp_path / "safe", directory, capsys)
    code, _, err = drain(capsys, str(tmp_path / "safe"), "--to", "run/small")
    assert code == 1
    assert "code: run-locked" in err


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run/small", "--to", "runs/small/checkpoints"), 2, "code: drain-same"),
        (("run/small", "--to", "runs/small/checkpoints/safe"), 2, "code: drain-same"),
        (("run/small", "--to", "runs"), 1, "code: drain-folder"),
        (("run/small", "--to", "safe", "--step", "15"), 102, "steps? 10, 20"),
        (("run/small", "--to", "safe", "--rate", "0B"), 2, "code: out-of-range"),
        (("run/small", "--to", "safe", "--rate", "0"), 2, "without the option there is no limit\ncode: out-of-range"),
        (("run/other", "--to", "safe"), 102, "code: checkpoints-not-found"),
        (("run/small", "--to", "run/other"), 102, "code: checkpoints-not-found"),
        (("runs/small/checkpoints", "--to", "small"), 2, r"write run/small or \./small\ncode: checkpoints-ambig"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = drain(capsys, *arguments)
    assert (got, out) == (code, "")
    assert re.search(said, err), err
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_damaged_checkpoint_is_not_copied_and_the_place_is_named(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = directory.checkpoints.glob("steps/000000020-*/model/w/c/0/0")
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    code, _, err = drain(capsys, "run/small", "--to", str(tmp_path / "safe"))
    assert code == 3
    assert err.startswith("error: source: file steps/000000020-a1-20/model/w/c/0/0: ")
    assert "code: drain-damaged" in err
    assert steps_of(tmp_path / "safe") == []


@pytest.mark.parametrize("gone", ["model/w/c/0/0", "model/w/zarr.json", "index"])
def test_of_an_object_that_is_gone_it_says_in_which_of_the_two_stores(
    gone: str, directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = directory.checkpoints.glob(f"steps/000000020-*/{gone}")
    file.unlink()
    code, _, err = drain(capsys, "run/small", "--to", str(tmp_path / "safe"))
    assert code != 0
    assert f"{directory.checkpoints}: read steps/000000020-a1-20/{gone}: no such file or directory" in err
    assert str(tmp_path / "safe") not in err


def objects_of(path: Path) -> dict[str, int]:
    """Sizes of what the store has of its writes, by key."""
    with closing(LocalStore(path)) as store:
        return {info.key: info.size_bytes for info in store.list("steps")}


def plan_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    code, out, _ = drain(capsys, *arguments, "--dry-run", "-o", "json")
    assert code == 0
    told: dict[str, object] = json.loads(out)
    return told


@pytest.mark.usefixtures("directory")
def test_a_dry_run_tells_what_the_copy_makes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "safe"
    told = plan_of(capsys, "run/small", "--to", str(target), "--rate", "1KB")
    assert not target.exists()
    assert drain(capsys, "run/small", "--to", str(target))[0] == 0
    made = objects_of(target)
    assert (told["step"], told["writeId"], told["target"]) == (20, "a1-20", str(target))
    assert (told["isThere"], told["foundObjects"], told["foundBytes"]) == (False, 0, 0)
    assert (told["numObjects"], told["numBytes"]) == (len(made), sum(made.values()))
    assert told["leastSeconds"] == sum(made.values()) / 1000
    again = plan_of(capsys, "run/small", "--to", str(target), "--rate", "1KB")
    assert (again["isThere"], again["foundObjects"], again["leastSeconds"]) == (True, 0, None)


@pytest.mark.usefixtures("directory")
def test_a_dry_run_tells_apart_what_a_copy_left_that_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "safe"
    assert drain(capsys, "run/small", "--to", str(target))[0] == 0
    with closing(LocalStore(target)) as store:
        store.delete([info.key for info in store.list("commits")])
    cut, *whole = sorted(objects_of(target))
    (target / cut).write_bytes(b"half")
    before = objects_of(target)
    code, out, _ = drain(capsys, "run/small", "--to", str(target), "--dry-run")
    assert code == 0
    assert f"checkpoint/20 would be copied to {target} from " in out
    assert f": {len(whole) + 1} objects of " in out
    assert f", {len(whole)} objects of " in out
    assert "there already, to be read back" in out
    assert objects_of(target) == before


@pytest.mark.usefixtures("directory")
def test_a_dry_run_leaves_a_bucket_alone_and_does_not_try_it_out(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwanted(_store: object, *, url: str) -> None:
        raise AssertionError(f"{url} was tried out")

    let_in(monkeypatch, s3)
    monkeypatch.setattr("behemoth_cli.commands.ckpt_drain.probe_bucket", unwanted)
    url = f"s3://{BUCKET}/drained/dry"
    assert plan_of(capsys, "run/small", "--to", url)["foundObjects"] == 0
    with closing(open_store(url)) as store:
        assert list(store.list("")) == []


def test_a_dry_run_refuses_the_store_of_another_run_and_says_that_the_own_one_is_alive(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_in(tmp_path / "safe", directory, capsys)
    code, out, err = drain(capsys, str(tmp_path / "safe"), "--to", "run/small", "--dry-run")
    assert (code, "run/small is alive: the copy would be refused" in err) == (0, True)
    assert out.startswith("checkpoint/10 would be copied to ")
    with closing(LocalStore(tmp_path / "theirs")) as store:
        take(store, Owner.of_run(RunUid("theirs"), name="other", directory="/elsewhere"), url="theirs")
    code, out, err = drain(capsys, "run/small", "--to", str(tmp_path / "theirs"), "--dry-run")
    assert (code, out, "code: store-owned" in err) == (1, "", True)


@pytest.fixture
def nobodys(tmp_path: Path) -> Path:
    """A store of no run, with a checkpoint."""
    with closing(LocalStore(tmp_path / "imported")) as store:
        save(store, small_layout(), step=10, write_id="import-10")
    return tmp_path / "imported"


def test_a_copy_into_a_store_of_no_run_waits_for_a_gc_that_deletes_it_there(
    nobodys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = tmp_path / "safe"
    with closing(LocalStore(safe)) as store:
        save(store, small_layout(), step=20, write_id="import-20")
        put_up(store, DELETING, (Step(10), WriteId("import-10")), reason="it is being deleted")
    for options in (("--dry-run",), ()):
        code, _, err = drain(capsys, str(nobodys), "--to", str(safe), *options)
        assert (code, "code: commit-going" in err) == (1, True)
        assert steps_of(safe) == [20]
    assert root.run(["ckpt", "gc", str(safe), "--keep-last", "2", "--execute"]) == 0
    assert drain(capsys, str(nobodys), "--to", str(safe))[0] == 0
    assert steps_of(safe) == [10, 20]


def test_a_copy_that_is_done_when_a_run_has_taken_the_store_is_no_checkpoint_of_it(
    nobodys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has looked for commits before this one was there, and cleared away what it took for rubbish."""
    safe = tmp_path / "safe"

    def overtaken(source: ObjectStore, target: SavesTo, ref: CommitRef, **how: Any) -> Copied:
        copied = copy_checkpoint(source, target, ref, **how)
        take(target, Owner.of_run(RunUid("u1"), name="big", directory="/runs/big"), url=str(safe))
        target.delete([info.key for info in target.list("steps")])
        return copied

    monkeypatch.setattr(ckpt_drain, "copy_checkpoint", overtaken)
    code, _, err = drain(capsys, str(nobodys), "--to", str(safe))
    assert (code, "got that of run/big in /runs/big" in err) == (1, True)
    assert steps_of(safe) == []
