"""The run directory: one run, one process, whole files or none."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from behemoth.app.run_directory import RunDirectory, Term, existing
from behemoth.app.start_run import RunPlace, claim, refuse_copy
from behemoth.base.errors import Conflict, Corrupt, Denied, Invalid, NotFound
from behemoth.base.ids import Epoch
from behemoth.spec.decode import decode_run
from behemoth.spec.drill import parse_fault
from behemoth.spec.run import TrainingRun

TEXT = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {name: small}
spec:
  nodes: {count: 2, gpus_per_node: 1}
  mesh: {dp: 2}
  workload: {entrypoint: "m:f", steps: 10}
"""


def run(store: str = "") -> TrainingRun:
    return decode_run(TEXT + (f"  checkpoint: {{store: {store}}}\n" if store else ""))


def begin(training: TrainingRun, path: Path) -> RunPlace:
    """A run whose journal has a line."""
    place = claim(training, path)
    place.directory.journal.write_bytes(b"{}\n")
    place.directory.close()
    return place


def test_a_second_process_is_refused_while_the_first_holds_the_directory(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "r")
    first.open()
    with pytest.raises(Conflict, match="another live"):
        RunDirectory(tmp_path / "r").open()
    first.close()
    again = RunDirectory(tmp_path / "r")
    again.open()
    again.close()


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from behemoth.app.run_directory import RunDirectory\n"
        f"RunDirectory(Path({str(tmp_path / 'r')!r})).open(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -9
    directory = RunDirectory(tmp_path / "r")
    directory.open()
    directory.close()


def test_the_same_run_may_come_back_and_keeps_its_identity(tmp_path: Path) -> None:
    first = claim(run(), tmp_path / "r")
    first.directory.close()
    second = claim(run(), tmp_path / "r")
    second.directory.close()
    assert second.identity == first.identity


def test_a_changed_run_on_an_old_directory_is_refused_naming_the_field_and_releases_the_lock(tmp_path: Path) -> None:
    begin(run(), tmp_path / "r")
    changed = decode_run(TEXT.replace("steps: 10", "steps: 20"))
    with pytest.raises(Invalid, match=r"spec\.workload\.steps: 10 -> 20"):
        claim(changed, tmp_path / "r")
    claim(run(), tmp_path / "r").directory.close()


def test_other_drills_do_not_make_it_another_run(tmp_path: Path) -> None:
    begin(run(), tmp_path / "r")
    drilled = dataclasses.replace(run(), drill=(parse_fault("kill rank 1 at step 5"),))
    claim(drilled, tmp_path / "r").directory.close()


def test_the_secret_is_for_its_owner_only_and_stays_the_same(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "r")
    directory.open()
    secret = directory.secret()
    assert directory.secret() == secret
    assert len(secret) == 32
    assert stat.S_IMODE((tmp_path / "r" / "secret").stat().st_mode) == 0o600
    (tmp_path / "r" / "secret").write_bytes(b"short")
    with pytest.raises(Corrupt, match="expected 32 bytes, got 5"):
        directory.secret()
    directory.close()


def test_a_new_directory_stays_as_its_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store lies in it: what is durable in a folder goes with an entry above that is not."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    directory = RunDirectory(tmp_path / "runs" / "r")
    directory.open()
    directory.close()
    assert {str(tmp_path), str(tmp_path / "runs")} <= set(synced)


def test_a_crash_before_the_rename_leaves_the_old_term(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "r")
    directory.open()
    directory.begin_term(Term(epoch=Epoch(1), port=5, pid=7))
    (tmp_path / "r" / ".coordinator.json.new").write_bytes(b'{"epo')
    assert directory.term() == Term(epoch=Epoch(1), port=5, pid=7)
    directory.begin_term(Term(epoch=Epoch(2), port=6, pid=8))
    assert directory.term() == Term(epoch=Epoch(2), port=6, pid=8)
    directory.close()


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("")
    with pytest.raises(Invalid, match=str(tmp_path / "r")):
        RunDirectory(tmp_path / "r").open()


def test_a_directory_without_a_run_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="expected a run there"):
        existing(tmp_path)


@pytest.mark.parametrize("store", ["", "store"])
def test_a_path_that_is_no_text_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(Invalid, match="expected a path of UTF-8"):
        claim(run(store), tmp_path / "r" if store else Path("r"))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "rubbish", [b"[]", b'{"run_uid": "\xff", "name": "small"}', b'{"more": ' + b"[" * 5000 + b"]" * 5000 + b"}"]
)
def test_an_identity_that_was_changed_by_hand_is_corrupt(tmp_path: Path, rubbish: bytes) -> None:
    claim(run(), tmp_path / "r").directory.close()
    (tmp_path / "r" / "identity.json").write_bytes(rubbish)
    with pytest.raises(Corrupt, match=r"identity\.json"):
        claim(run(), tmp_path / "r")


def test_a_new_term_leaves_no_summary_of_the_one_before(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "r")
    directory.open()
    directory.write_summary({"outcome": "suspended"})
    directory.begin_term(Term(epoch=Epoch(2), port=6, pid=8))
    assert not directory.summary.exists()
    directory.close()


def test_the_environment_of_a_workload_is_for_its_owner_only_and_never_told(tmp_path: Path) -> None:
    text = TEXT.replace("steps: 10}", "steps: 10, environment: {TOKEN: %s}}")
    begin(decode_run(text % "hunter2"), tmp_path / "r")
    assert stat.S_IMODE((tmp_path / "r" / "run.yaml").stat().st_mode) == 0o600
    for changed, told in ((text % "hunter3", "TOKEN: another value"), (TEXT, "TOKEN: present -> absent")):
        with pytest.raises(Invalid, match=told) as caught:
            claim(decode_run(changed), tmp_path / "r")
        assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.yaml", "summary.json", "notes.txt"])
def test_a_directory_with_somebody_elses_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(Invalid, match=f"got 1 other files .{name}"):
        claim(run(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_beginning_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".identity.json.new").write_text("half")
    claim(run(), tmp_path).directory.close()
    first = existing(tmp_path).identity()
    (tmp_path / "run.yaml").unlink()  # as if killed between the identity and the document
    claim(run(), tmp_path).directory.close()
    assert (tmp_path / "run.yaml").exists()
    assert existing(tmp_path).identity() == first  # it may have taken its store already


def test_a_start_that_came_to_nothing_leaves_the_directory_to_a_corrected_file(tmp_path: Path) -> None:
    first = claim(run("typo"), tmp_path / "r")
    first.directory.close()
    (tmp_path / "r" / "evidence.jsonl").touch()  # opened, and then something prevented the start
    told: list[tuple[str, str | None]] = []
    second = claim(run("right"), tmp_path / "r", vet=lambda url, run_uid: told.append((url, run_uid)))
    second.directory.close()
    assert told == [(second.store_url, first.identity.run_uid)]
    assert second.identity.run_uid == first.identity.run_uid
    assert (second.store_url, first.store_url) == tuple(
        str(Path(name, "small").absolute()) for name in ("right", "typo")
    )


def test_a_run_that_has_begun_keeps_its_identity_whatever_is_removed(tmp_path: Path) -> None:
    begin(run(), tmp_path)
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(
        NotFound, match=r"run\.yaml: expected the run as it was first started, got no such file"
    ) as caught:
        claim(run(), tmp_path)
    assert "put it back" in caught.value.hint


def test_a_copy_of_a_directory_is_told_from_one_that_was_moved(tmp_path: Path) -> None:
    place = claim(run(), tmp_path / "first")
    place.directory.close()
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    with pytest.raises(Conflict, match=r"got a copy of .*first"):
        refuse_copy(place.identity, tmp_path / "copy", tmp_path / "first")
    refuse_copy(place.identity, tmp_path / "first", tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    refuse_copy(place.identity, tmp_path / "moved", tmp_path / "first")


def test_a_relative_store_means_where_the_run_began_wherever_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = tmp_path / "began"
    for folder in (began, tmp_path / "later"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        place = begin(run("ckpts"), tmp_path / "r")
        assert place.store_url == str(began / "ckpts" / "small")


def test_a_run_directory_that_was_moved_takes_its_own_store_with_it(tmp_path: Path) -> None:
    claim(run(), tmp_path / "r").directory.close()
    (tmp_path / "r").rename(tmp_path / "moved")
    place = claim(run(), tmp_path / "moved")
    place.directory.close()
    assert place.store_url == str(tmp_path / "moved" / "checkpoints")


def test_a_directory_of_a_release_that_kept_no_store_is_read_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin(run("ckpts"), tmp_path / "r")
    (tmp_path / "r" / "identity.json").write_text('{"format":1,"run_uid":"0123456789abcdef","name":"small"}\n')
    place = claim(run("ckpts"), tmp_path / "r")
    place.directory.close()
    assert (place.identity.run_uid, place.store_url) == ("0123456789abcdef", str(tmp_path / "ckpts" / "small"))


def test_a_store_that_is_refused_leaves_a_fresh_directory_free_for_a_corrected_file(tmp_path: Path) -> None:
    def refuse(url: str, _run_uid: object) -> None:
        raise Conflict(f"{url}: expected nobody's, got another's")

    with pytest.raises(Conflict, match="taken/small"):
        claim(run(str(tmp_path / "taken")), tmp_path / "r", vet=refuse)
    begin(run(str(tmp_path / "free")), tmp_path / "r")
    claim(run(str(tmp_path / "free")), tmp_path / "r", vet=refuse).directory.close()


def test_a_log_folder_in_which_nothing_can_be_made_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "logs")
    with pytest.raises(Denied, match="Permission denied for its folder logs"):
        RunDirectory(tmp_path / "r").open()


def test_a_lock_on_a_directory_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: shutil.rmtree(tmp_path / "r"))
    with pytest.raises(Conflict, match="removed while it was locked"):
        RunDirectory(tmp_path / "r").open()
