"""Saves that fail: what they leave goes, and they are in nobody's way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from behemoth.app.import_lock import clearing
from behemoth.base.errors import Conflict, Unavailable
from behemoth.checkpoint.commit_log import latest
from behemoth.dcp import BehemothWriter
from behemoth.storage.local import LocalStore
from dcp.programs import told_by
from dcp.saved import Failing, Meanwhile, loaded, refs, refusal, state_of, writes
from dcp.trees import same, save


def test_what_a_failed_save_wrote_goes_with_the_next_one(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path, threads=1)
    with pytest.raises(CheckpointException, match="device lost"):
        save(state_of(1), storage_writer=writer, planner=Failing())
    assert len(writes(tmp_path)) == 1
    save(state_of(2), storage_writer=writer)
    with closing(LocalStore(tmp_path)) as store:
        newest = latest(store)
    assert newest is not None
    assert writes(tmp_path) == {(0, newest.write_id)}


def refused_value(writer: BehemothWriter, _patch: pytest.MonkeyPatch) -> None:
    save({"w": torch.ones(2), "began": object()}, storage_writer=writer)


def broken_tensor(writer: BehemothWriter, _patch: pytest.MonkeyPatch) -> None:
    save(state_of(1), storage_writer=writer, planner=Failing())


def store_away(writer: BehemothWriter, patch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise Unavailable("the store is away")

    with patch.context() as here:
        here.setattr("behemoth.dcp.writer.publish", fail)
        save(state_of(1), storage_writer=writer)


def place_taken(writer: BehemothWriter, patch: pytest.MonkeyPatch) -> None:
    def taken(*_arguments: object, **_options: object) -> None:
        raise Conflict("there is one")

    with patch.context() as here:
        here.setattr("behemoth.dcp.writer.check_place", taken)
        save(state_of(1), storage_writer=writer)


@pytest.mark.parametrize("fail", [refused_value, broken_tensor, store_away, place_taken])
def test_a_save_that_failed_keeps_no_clean_up_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[BehemothWriter, pytest.MonkeyPatch], None]
) -> None:
    writer = BehemothWriter(tmp_path)
    with pytest.raises(CheckpointException):
        fail(writer, monkeypatch)
    with clearing(tmp_path):
        pass
    save(state_of(2), storage_writer=writer)
    assert same(loaded(tmp_path, state_of(0)), state_of(2))


def test_while_a_save_goes_on_a_clean_up_is_kept_out(tmp_path: Path) -> None:
    def clear() -> None:
        with clearing(tmp_path):
            pass

    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.ones(2)}, storage_writer=BehemothWriter(tmp_path), planner=Meanwhile(clear))
    assert refusal(caught.value).code == "store-busy"


def test_another_process_clears_and_saves_while_the_writer_of_a_failed_save_is_there(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path, threads=1)
    with pytest.raises(CheckpointException):
        save(state_of(1), storage_writer=writer, planner=Failing())
    assert len(writes(tmp_path)) == 1
    assert told_by("clearing_program", str(tmp_path)) == {"code": 0, "steps": [0]}
    assert writes(tmp_path) == {(0, refs(tmp_path)[0].write_id)}
    save(state_of(2), storage_writer=writer)
    assert [ref.step for ref in refs(tmp_path)] == [0, 1]
