"""What is unusable on a node's own disk is said, gives nothing to a restore, and is written again."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.peers.staged import StagedRank
from agent.test_own_disk_bounds import FOLDER, disk_on, keep, rank
from behemoth.agent.own_disk import disk_trouble
from behemoth.agent.places import Taken, take_from
from behemoth.agent.storewire import RestoreSource
from behemoth.base.errors import BehemothError, Corrupt, Denied, NotFound, Timeout, Unavailable
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.gathering import Gathering
from behemoth.checkpoint.snapshot_files import UNREADABLE
from behemoth.checkpoint.snapshot_format import SnapshotHeader, file_bytes
from behemoth.ports import WritesRanges
from behemoth.storage.open import open_private
from behemoth.testing.faults import Fail, FaultyStore, When
from behemoth.testing.store import MemoryStore, read

__all__ = ["rank"]  # the fixture

NOBODY = 65534
SOURCE = RestoreSource(step=Step(7), write_id=WriteId("a1-1"), held_in=None, spare=1)
KEY = f"{FOLDER}/rank-00000.0"


def restored(store: WritesRanges, folder: Path, rank: StagedRank) -> tuple[Taken, Gathering]:
    """Of write a1-1, from the own disk alone, into the rank's other generation."""
    gathering = Gathering(rank.plan, rank.arena, 1, write_id=SOURCE.write_id, step=SOURCE.step, threads=1)
    return take_from([disk_on(store, folder).place(rank.plan, SOURCE)], gathering), gathering


@contextmanager
def somebody_else() -> Iterator[None]:
    """Within, this process is not root, whatever it was."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@contextmanager
def folder_of_others(content: bytes) -> Iterator[Path]:
    """A path of the own disk, on which the run's folder with a file is somebody else's."""
    with tempfile.TemporaryDirectory() as path:
        disk = Path(path)
        file = disk / "disk" / KEY
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        for one in (disk, disk / "disk"):
            one.chmod(0o755)
        run = disk / "disk" / "toy-run-1"
        mode = stat.S_IMODE(run.stat().st_mode)
        run.chmod(0o000)
        try:
            yield disk
        finally:
            run.chmod(mode)


def test_a_folder_that_is_somebody_else_s_gives_nothing_takes_nothing_and_says_so(rank: StagedRank) -> None:
    good = MemoryStore()
    keep(disk_on(good, Path("/nowhere")), rank)
    content = read(good, KEY, file_bytes(rank.plan))
    with folder_of_others(content) as folder:
        store = open_private(str(folder / "disk"))
        with somebody_else():
            taken, gathering = restored(store, folder, rank)
            with pytest.raises(Denied, match="permission denied") as caught:
                keep(disk_on(store, folder), rank)
        store.close()
        assert not gathering.has_any
        assert "rank-00000.0: permission denied" in disk_trouble(taken.errors["disk"])
        assert "check owner and mode of the directory" in caught.value.hint
    assert [one.is_verified for one in rank.arena.held()] == [True]


@pytest.mark.parametrize(
    ("change", "said", "is_trouble"),
    [
        ({"run_uid": RunUid("run-2")}, "rank-00000.0 is of another run, rank or layout", False),
        ({"layout_digest": "0" * 64}, "rank-00000.0 is of another run, rank or layout", False),
        ({"step": Step(8)}, "rank-00000.0 holds write a1-1 of step 8", False),
        ({"write_id": WriteId("a1-2")}, "rank-00000.0 holds write a1-2 of step 7", False),
        ({"format": FormatVersion(major=2, minor=0)}, "rank-00000.0: .*expected format 1.x, got 2.0", True),
    ],
)
def test_a_whole_file_of_something_else_gives_nothing_says_what_it_is_and_gives_way(
    tmp_path: Path, rank: StagedRank, change: dict[str, object], said: str, is_trouble: bool
) -> None:
    store = MemoryStore()
    keep(disk_on(store, tmp_path), rank)
    data = read(store, KEY, file_bytes(rank.plan))
    header = SnapshotHeader.decode(data[:PAGE_BYTES])
    assert header is not None
    store.delete([KEY])
    store.create(KEY, replace(header, **change).encode() + data[PAGE_BYTES:])  # type: ignore[arg-type]
    taken, gathering = restored(store, tmp_path, rank)
    assert not gathering.has_any
    (missed,) = taken.missed
    assert re.search(said, missed)
    assert bool(disk_trouble(taken.errors["disk"])) == is_trouble
    assert keep(disk_on(store, tmp_path), rank).num_bytes == rank.plan.data_bytes
    taken, gathering = restored(store, tmp_path, rank)
    assert (gathering.is_whole, taken.missed) == (True, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, ""),
        (NotFound("no file", code="no-snapshot"), ""),
        (NotFound("rank-00000.0: a torn header", code=UNREADABLE), "rank-00000.0: a torn header"),
        (Corrupt("its table is damaged"), "its table is damaged"),
        (Unavailable("an i/o error", hint="look at the disk"), "an i/o error; look at the disk"),
        (Timeout("no answer"), "no answer"),
    ],
)
def test_that_a_disk_never_had_the_write_is_no_trouble_of_it(error: BehemothError | None, told: str) -> None:
    assert disk_trouble(error) == told


def test_a_damaged_copy_that_could_not_be_dropped_is_not_taken_for_one_until_it_was_written_again(
    tmp_path: Path, rank: StagedRank
) -> None:
    store = MemoryStore()
    keep(disk_on(store, tmp_path), rank)
    broken = Fail(write=0, when=When.BEFORE, error=Unavailable("the disk is away"))
    disk = disk_on(FaultyStore(store, broken), tmp_path)
    disk.distrust(rank.plan, SOURCE.write_id, Corrupt("its table of CRCs is damaged"))
    assert keep(disk, rank).num_bytes == rank.plan.data_bytes
    assert keep(disk, rank).num_bytes == 0


def test_a_copy_that_came_after_a_restore_had_looked_for_it_stays(tmp_path: Path, rank: StagedRank) -> None:
    store = MemoryStore()
    disk = disk_on(store, tmp_path)
    taken, _ = restored(store, tmp_path, rank)
    keep(disk, rank)
    disk.distrust(rank.plan, SOURCE.write_id, taken.errors["disk"])
    assert keep(disk, rank).num_bytes == 0


def test_a_copy_that_the_device_could_not_read_is_dropped_and_one_that_was_slow_stays(
    tmp_path: Path, rank: StagedRank
) -> None:
    store = MemoryStore()
    disk = disk_on(store, tmp_path)
    keep(disk, rank)
    disk.distrust(rank.plan, SOURCE.write_id, Timeout("no answer"))
    assert keep(disk, rank).num_bytes == 0
    disk.distrust(rank.plan, SOURCE.write_id, Unavailable("input/output error", code="io-error"))
    assert keep(disk, rank).num_bytes == rank.plan.data_bytes
