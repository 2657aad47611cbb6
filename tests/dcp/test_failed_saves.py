"""Saves that fail: what they leave goes, and they are in nobody's way."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.api import CheckpointException
from typing_extensions import Buffer

from behemoth.app.import_lock import clearing, importing
from behemoth.base.errors import Conflict, Unavailable
from behemoth.checkpoint.commit_log import latest
from behemoth.dcp import BehemothWriter, save_lock
from behemoth.dcp.save_call import SaveCall
from behemoth.storage.local import LocalStore
from dcp.by_hand import planned
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


@pytest.mark.parametrize("how", ["raises", "raises-async", "killed-1"])
def test_a_coordinator_lets_a_clean_up_in_when_another_rank_failed(tmp_path: Path, how: str) -> None:
    """DCP tells its writer nothing then. It still has that writer, and the error, while the store is cleared."""
    told = told_by("failing_program", how, str(tmp_path))
    coordinator, failed = told["ranks"][0], told["ranks"][1]
    assert coordinator["error"] is not None
    assert coordinator["freed"]
    assert coordinator["cleared"] == 0
    if how == "killed-1":
        assert failed is None
    else:
        assert "device lost" in failed["error"]
    last = [0, 1] if how == "killed-1" else [0, 1, 2]
    assert [one["steps"] for one in told["resumed"]] == [last, last]
    assert writes(tmp_path) == {(ref.step, ref.write_id) for ref in refs(tmp_path)}


def test_a_new_job_saves_at_once_when_the_coordinator_was_killed(tmp_path: Path) -> None:
    told = told_by("failing_program", "killed-0", str(tmp_path))
    assert told["ranks"][0] is None
    assert [one["steps"] for one in told["resumed"]] == [[0, 1], [0, 1]]
    assert len(writes(tmp_path)) == 3
    assert told_by("clearing_program", str(tmp_path))["code"] == 0
    assert writes(tmp_path) == {(ref.step, ref.write_id) for ref in refs(tmp_path)}


def test_the_lock_stays_while_a_save_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread looks many times while one tensor is being written."""
    looked_often = threading.Event()
    looks: list[bool] = []

    def is_over(save: SaveCall) -> bool:
        looks.append(found := really_over(save))
        if len(looks) >= 10:
            looked_often.set()
        return found

    really_over = SaveCall.is_over
    monkeypatch.setattr(SaveCall, "is_over", is_over)
    monkeypatch.setattr(save_lock, "LOOK_S", 0.001)

    def wait_and_clear() -> None:
        assert looked_often.wait(60)
        with pytest.raises(Conflict), clearing(tmp_path):
            pass

    save(state_of(1), storage_writer=BehemothWriter(tmp_path), planner=Meanwhile(wait_and_clear))
    assert not any(looks)
    with clearing(tmp_path):
        pass


def test_a_lock_ends_with_its_save_and_not_with_children_that_were_forked_meanwhile(tmp_path: Path) -> None:
    """As workers of a data loader are, which live on."""
    end, begin = os.pipe()
    with importing(tmp_path):
        child = os.fork()
        if not child:
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    os.close(end)
    try:
        with clearing(tmp_path):
            pass
    finally:
        os.close(begin)
        os.waitpid(child, 0)


def test_a_forked_child_that_unwinds_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    lock = importing(tmp_path)
    lock.__enter__()
    child = os.fork()
    if not child:
        lock.__exit__(None, None, None)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(Conflict), clearing(tmp_path):
        pass
    lock.__exit__(None, None, None)
    with clearing(tmp_path):
        pass


def test_a_lock_ends_with_a_process_that_is_killed_and_not_with_the_children_that_it_had_forked(tmp_path: Path) -> None:
    (end, begin), (told, ready) = os.pipe(), os.pipe()
    parent = os.fork()
    if not parent:
        os.close(begin)
        with importing(tmp_path):
            if not os.fork():
                os.read(end, 1)
                os._exit(0)
            os.write(ready, b"1")
            signal.pause()
    os.close(end)
    os.read(told, 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with clearing(tmp_path):
        pass
    for fd in (begin, told, ready):
        os.close(fd)


def test_a_writer_that_something_else_than_torchs_save_drives_keeps_its_lock_until_its_next_save_or_its_end(
    tmp_path: Path,
) -> None:
    """Nobody can tell then whether a save has failed."""
    writer = BehemothWriter(tmp_path)
    begun = [planned([writer], state_of(1))]
    with pytest.raises(Conflict), clearing(tmp_path):
        pass
    save(state_of(2), storage_writer=writer)
    with clearing(tmp_path):
        pass
    begun.append(planned([writer], state_of(3)))
    begun.clear()
    del writer
    gc.collect()
    with clearing(tmp_path):
        pass
    assert [ref.step for ref in refs(tmp_path)] == [0]


class Turning(DefaultSavePlanner):
    """Has another save of the same writer begin, for another checkpoint, before this one writes."""

    def __init__(self, again: Callable[[], object]) -> None:
        super().__init__()
        self._again = again

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self._again()
        return super().finish_plan(new_plan)


def test_a_second_save_that_is_refused_turns_the_first_to_no_other_checkpoint(tmp_path: Path) -> None:
    writer = BehemothWriter("unused")

    def save_elsewhere() -> None:
        with ThreadPoolExecutor(max_workers=1) as threads:
            second = threads.submit(save, state_of(2), storage_writer=writer, checkpoint_id=tmp_path / "other/step-2")
        assert isinstance(error := second.exception(), CheckpointException)
        assert refusal(error).code == "dcp-two-saves"

    save(
        state_of(1),
        storage_writer=writer,
        checkpoint_id=tmp_path / "one/step-1",
        planner=Turning(save_elsewhere),
    )
    assert same(loaded(tmp_path / "one", state_of(0)), state_of(1))
    assert [ref.step for ref in refs(tmp_path / "one")] == [1]
    assert not (tmp_path / "other").exists()


class TurningFirst(DefaultSavePlanner):
    """Has another save of the same writer, for another checkpoint, be made before this one is set up."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__()
        self._before = before

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        self._before()
        super().set_up_planner(*args, **kwargs)


def test_a_save_that_comes_between_turns_another_that_has_begun_to_no_other_checkpoint(tmp_path: Path) -> None:
    """As two asynchronous ones may, of which nobody waits for the first."""
    writer = BehemothWriter("unused")

    def save_elsewhere() -> None:
        with ThreadPoolExecutor(max_workers=1) as threads:
            threads.submit(save, state_of(2), storage_writer=writer, checkpoint_id=tmp_path / "other/step-2").result()

    save(
        state_of(1),
        storage_writer=writer,
        checkpoint_id=tmp_path / "one/step-1",
        planner=TurningFirst(save_elsewhere),
    )
    assert same(loaded(tmp_path / "one", state_of(0)), state_of(1))
    assert same(loaded(tmp_path / "other", state_of(0)), state_of(2))


def test_a_second_save_may_follow_at_once_on_an_asynchronous_one_that_failed(tmp_path: Path) -> None:
    """Though the thread of the first may still be there."""
    writer, threads = BehemothWriter(tmp_path, threads=1), ThreadPoolExecutor(max_workers=1)
    failed = threads.submit(save, state_of(1), storage_writer=writer, planner=Failing())
    with pytest.raises(CheckpointException, match="device lost"):
        failed.result()
    save(state_of(2), storage_writer=writer)
    assert any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())
    threads.shutdown()
    assert [ref.step for ref in refs(tmp_path)] == [0]


def test_a_save_that_can_start_no_thread_keeps_no_clean_up_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = BehemothWriter(tmp_path)
    with monkeypatch.context() as here:
        here.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CheckpointException, match="can't start new thread"):
            save(state_of(1), storage_writer=writer)
    with clearing(tmp_path):
        pass
    save(state_of(2), storage_writer=writer)
    assert same(loaded(tmp_path, state_of(0)), state_of(2))


def test_an_interrupt_while_the_lock_is_let_go_leaves_it_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if thread.name == "dcp-save-lock":
            raise KeyboardInterrupt

    writer = BehemothWriter(tmp_path)
    with monkeypatch.context() as here:
        here.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(CheckpointException):
            save(state_of(1), storage_writer=writer)
    with clearing(tmp_path):
        pass
    assert same(loaded(tmp_path, state_of(0)), state_of(1))


def test_a_second_save_that_is_refused_lets_no_clean_up_in_while_the_first_goes_on(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path, threads=1)

    def save_again_and_clear() -> None:
        with ThreadPoolExecutor(max_workers=1) as threads:
            second = threads.submit(save, state_of(2), storage_writer=writer).exception()
        assert isinstance(second, CheckpointException)
        assert refusal(second).code == "dcp-two-saves"
        with pytest.raises(Conflict), clearing(tmp_path):
            pass

    save(state_of(1), storage_writer=writer, planner=Meanwhile(save_again_and_clear))
    assert same(loaded(tmp_path, state_of(0)), state_of(1))


def test_a_replacement_that_is_interrupted_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C on the coordinator: DCP raises it on all ranks as any other error."""
    place = tmp_path / "step-3"
    save(state_of(1), storage_writer=BehemothWriter(place))

    def interrupted(_store: LocalStore, _key: str, **_data: Buffer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "replace", interrupted)
        with pytest.raises(CheckpointException):
            save(state_of(2), storage_writer=BehemothWriter(place))
    assert same(loaded(place, state_of(0)), state_of(1))
    save(state_of(2), storage_writer=BehemothWriter(place))
    assert same(loaded(place, state_of(0)), state_of(2))
    assert list(LocalStore(place.parent).list("deleting")) == []
