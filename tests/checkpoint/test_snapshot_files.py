"""A rank's snapshots on its node's own disk: whole and proven, or not at all, whoever is killed when."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from behemoth.base.ids import Rank, RunUid, Step, WriteId
from behemoth.checkpoint import snapshot_files
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.snapshot_format import SnapshotHeader, data_offset, file_bytes
from behemoth.ports import WritesRanges
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, Fail, FaultyStore, When, every_death
from behemoth.testing.store import MemoryStore, contents, read
from checkpoint.killed_copies import plan_of_copies
from checkpoint.saved_checkpoint import big_layout, small_layout
from checkpoint.snapshots import PREFIX, files_of, formatted, given_back, keep, promised, spans_of, stage_bytes

SMALL, OTHER_RANK = (plan_rank(small_layout(), Rank(rank)) for rank in range(2))
TESTS = Path(__file__).parent.parent
BIG = plan_rank(big_layout(), Rank(0))
END_OF_SPANS = data_offset(SMALL) + SMALL.spans[-1].arena_offset + SMALL.spans[-1].length


def kept_in(store: WritesRanges, plan: RankPlan, *writes: tuple[str, int]) -> dict[str, bytes]:
    """Keep these writes one after the other; the content of each."""
    arena, found = formatted(plan), {}
    for write_id, step in writes:
        found[write_id] = stage_bytes(arena, plan, write_id, step)
        keep(store, arena, plan)
    return found


@pytest.mark.parametrize("plan", [SMALL, OTHER_RANK, BIG], ids=["small-0", "small-1", "big"])
def test_a_snapshot_comes_back_from_the_disk_as_it_was(tmp_path: Path, plan: RankPlan) -> None:
    store = LocalStore(tmp_path)
    content = kept_in(store, plan, ("a1-1", 7))
    assert given_back(store, plan, "a1-1", 7) == spans_of(content["a1-1"], plan)
    assert (tmp_path / PREFIX / f"rank-{plan.rank:05d}.0").stat().st_size == file_bytes(plan)
    store.close()


def test_a_part_that_begins_within_a_page_is_read_like_any_other(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    content = kept_in(store, BIG, ("a1-1", 7))["a1-1"]
    found = files_of(store, BIG).find(WriteId("a1-1"), Step(7))
    for begin, end in [(0, 5 << 20), (1, 4 << 20), (PAGE_BYTES - 1, PAGE_BYTES + 1), (100, 200), (8, 8)]:
        into = bytearray(end - begin)
        found.read_into(begin, memoryview(into))
        assert into == content[begin:end]
    store.close()


@pytest.mark.parametrize(
    ("begin", "end", "reads"),
    [
        (0, 9000, [(0, 9000)]),
        (100, 9000, [(100, PAGE_BYTES), (PAGE_BYTES, 9000)]),
        (100, PAGE_BYTES, [(100, PAGE_BYTES)]),
        (100, 200, [(100, 200)]),
    ],
)
def test_all_but_what_stands_before_the_first_page_is_read_from_a_page_on(
    monkeypatch: pytest.MonkeyPatch, begin: int, end: int, reads: list[tuple[int, int]]
) -> None:
    """Past the page cache only whole pages can be read."""
    store, asked = MemoryStore(), []
    kept_in(store, BIG, ("a1-1", 7))
    found = files_of(store, BIG).find(WriteId("a1-1"), Step(7))
    assert data_offset(BIG) % PAGE_BYTES == 0

    def read_into(_key: str, *, offset_bytes: int, into: memoryview) -> None:
        at = offset_bytes - data_offset(BIG)
        asked.append((at, at + into.nbytes))

    monkeypatch.setattr(store, "read_into", read_into)
    found.read_into(begin, memoryview(bytearray(end - begin)))
    assert asked == reads


def test_two_files_take_turns_and_the_newest_two_writes_are_there() -> None:
    store = MemoryStore()
    kept = kept_in(store, SMALL, ("a1-1", 30), ("a1-2", 60), ("a2-3", 40))  # it went back after a restore
    assert given_back(store, SMALL, "a1-1", 30) is None
    assert given_back(store, SMALL, "a1-2", 60) == spans_of(kept["a1-2"], SMALL)
    assert given_back(store, SMALL, "a2-3", 40) == spans_of(kept["a2-3"], SMALL)
    with pytest.raises(NotFound, match=r"expected write a1-1 of step 30 of rank 0, got rank-00000\.0 holds write a2-3"):
        files_of(store, SMALL).find(WriteId("a1-1"), Step(30))


@pytest.mark.parametrize("block_bytes", [64, 8 << 20])
def test_whoever_is_killed_at_any_write_leaves_the_older_snapshot_or_the_newer(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(snapshot_files, "BLOCK_BYTES", block_bytes)
    before, plan = MemoryStore(), SMALL
    old = kept_in(before, plan, ("a1-1", 1), ("a1-2", 2))["a1-2"]
    arena = formatted(plan)
    new = stage_bytes(arena, plan, "a1-3", 3)
    counting = FaultyStore(before.copy())
    keep(counting, arena, plan)
    outcomes = set()
    for death in every_death(counting.num_writes):
        after = before.copy()
        with pytest.raises(Crash):
            keep(FaultyStore(after, death), arena, plan)
        assert promised(after, plan, "a1-3", 3) in (None, spans_of(new, plan))
        for store in (after, *(after.after_power_loss(seed=seed) for seed in range(8))):
            assert given_back(store, plan, "a1-2", 2) == spans_of(old, plan)
            found = given_back(store, plan, "a1-3", 3)
            assert found in (None, spans_of(new, plan))
            outcomes.add(found is None)
            if found is None:  # the next process goes on, without what was damaged
                files_of(store, plan).drop(WriteId("a1-3"))
                keep(store, arena, plan)
            assert given_back(store, plan, "a1-3", 3) == spans_of(new, plan)
            assert promised(store, plan, "a1-2", 2) == spans_of(old, plan)
    assert counting.num_writes >= 6
    assert outcomes == {True, False}


def test_a_first_copy_that_is_cut_off_is_no_snapshot_and_the_next_one_is() -> None:
    arena = formatted(SMALL)
    content = stage_bytes(arena, SMALL, "a1-1", 1)
    counting = FaultyStore(MemoryStore())
    keep(counting, arena, SMALL)
    for death in every_death(counting.num_writes - 2):
        store = MemoryStore()
        with pytest.raises(Crash):
            keep(FaultyStore(store, death), arena, SMALL)
        assert given_back(store, SMALL, "a1-1", 1) is None
        keep(store, arena, SMALL)
        assert given_back(store, SMALL, "a1-1", 1) == spans_of(content, SMALL)


def test_real_kills_of_a_process_that_copies_leave_what_was_durable(tmp_path: Path) -> None:
    kill_copies(tmp_path, seed=1, num_kills=6)


@pytest.mark.longer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_real_kills_of_a_process_that_copies_leave_what_was_durable(tmp_path: Path, seed: int) -> None:
    kill_copies(tmp_path, seed=100 + seed, num_kills=50)


def kill_copies(folder: Path, *, seed: int, num_kills: int) -> None:
    """Each process goes on in the files of the one before. What was told to be durable is there and proven, and so is
    what came after it, or it is not there."""
    dice, plan, number, store = random.Random(seed), plan_of_copies(), 1, LocalStore(folder)
    for _ in range(num_kills):
        number = newest_of_killed(folder, number, dice)
        for one in (number, number + 1):
            found = promised(store, plan, f"a1-{one}", one)
            expected = np.random.default_rng([one, plan.rank]).bytes(plan.data_bytes)
            assert found == spans_of(expected, plan) or (found is None and one > number)
        number += 2
    store.close()


def newest_of_killed(folder: Path, first: int, dice: random.Random) -> int:
    """The last write of which a process told that it is durable, before it was killed at some moment."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    command = [sys.executable, str(TESTS / "checkpoint" / "killed_copies.py"), str(folder), str(first)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(dice.randint(1, 4))]
        time.sleep(dice.random() * 0.05)  # a kill at any moment is what this is about
        child.kill()
        told += child.stdout
    return int([line for line in told if line.endswith("\n")][-1])


@given(at=st.integers(0, file_bytes(SMALL) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found_wherever_it_is(at: int, bit: int) -> None:
    store = MemoryStore()
    content = kept_in(store, SMALL, ("a1-1", 7))["a1-1"]
    key = files_of(store, SMALL).keys[0]
    data = bytearray(read(store, key, file_bytes(SMALL)))
    data[at] ^= 1 << bit
    replace_file(store, key, bytes(data))
    is_proven = any(
        data_offset(SMALL) + span.arena_offset <= at < data_offset(SMALL) + span.arena_offset + span.length
        for span in SMALL.spans
    )
    is_gap = at >= PAGE_BYTES + 4 * len(SMALL.spans) and not is_proven
    assert given_back(store, SMALL, "a1-1", 7) == (spans_of(content, SMALL) if is_gap else None)


@given(size=st.integers(0, file_bytes(SMALL) - 1))
def test_a_file_that_was_cut_gives_nothing_and_is_written_anew(size: int) -> None:
    store = MemoryStore()
    arena = formatted(SMALL)
    content = stage_bytes(arena, SMALL, "a1-1", 7)
    keep(store, arena, SMALL)
    key = files_of(store, SMALL).keys[0]
    replace_file(store, key, read(store, key, size))
    is_whole = size >= END_OF_SPANS
    assert given_back(store, SMALL, "a1-1", 7) == (spans_of(content, SMALL) if is_whole else None)
    files_of(store, SMALL).drop(WriteId("a1-1"))
    keep(store, arena, SMALL)
    assert given_back(store, SMALL, "a1-1", 7) == spans_of(content, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_uid", RunUid("run-2")),
        ("rank", 1),
        ("step", Step(8)),
        ("write_id", WriteId("a1-2")),
        ("layout_digest", "0" * 64),
        ("num_spans", 1),
        ("data_bytes", 1),
        ("format", FormatVersion(major=2, minor=0)),
    ],
)
def test_a_header_of_something_else_is_no_snapshot_of_this_write(field: str, value: object) -> None:
    store = MemoryStore()
    kept_in(store, SMALL, ("a1-1", 7))
    put_header(store, lambda header: replace(header, **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(NotFound, match=r"rank-00000\.0"):
        files_of(store, SMALL).find(WriteId("a1-1"), Step(7))


def test_a_table_that_its_header_does_not_speak_for_is_damage() -> None:
    store = MemoryStore()
    kept_in(store, SMALL, ("a1-1", 7))
    put_header(store, lambda header: replace(header, table_crc=header.table_crc ^ 1))
    with pytest.raises(Corrupt, match="over its table of CRCs"):
        files_of(store, SMALL).find(WriteId("a1-1"), Step(7)).crcs()


def test_memory_that_is_filled_anew_meanwhile_makes_no_snapshot_and_the_other_file_stays() -> None:
    store, arena = MemoryStore(), formatted(BIG)
    first = stage_bytes(arena, BIG, "a1-1", 1)
    keep(store, arena, BIG)
    stage_bytes(arena, BIG, "a1-2", 2)
    snapshot, blocks = arena.held()[-1], []

    def refill(num_bytes: int) -> None:
        blocks.append(num_bytes)
        if len(blocks) == 2:
            arena.begin(snapshot.generation, WriteId("a1-3"), Step(3), BIG.layout_digest)

    with pytest.raises(Conflict, match="its snapshot was replaced"):
        files_of(store, BIG).write(arena, snapshot, pace=refill)
    assert len(blocks) == 2
    assert given_back(store, BIG, "a1-2", 2) is None
    assert given_back(store, BIG, "a1-1", 1) == spans_of(first, BIG)


@pytest.mark.parametrize("block_bytes", [64, 8 << 20])
@pytest.mark.parametrize("number", range(len(SMALL.spans)))
def test_damaged_memory_makes_no_snapshot(monkeypatch: pytest.MonkeyPatch, number: int, block_bytes: int) -> None:
    monkeypatch.setattr(snapshot_files, "BLOCK_BYTES", block_bytes)
    store, arena, span = MemoryStore(), formatted(SMALL), SMALL.spans[number]
    stage_bytes(arena, SMALL, "a1-1", 1)
    arena.data(arena.held()[-1].generation)[span.arena_offset + span.length - 1] ^= 1
    told = rf"array '\S+': expected CRC-32C [0-9a-f]{{8}}, got .* over {span.length} bytes at {span.arena_offset} of"
    with pytest.raises(Conflict, match=told):
        keep(store, arena, SMALL)
    assert given_back(store, SMALL, "a1-1", 1) is None


def test_it_tells_which_writes_it_holds() -> None:
    store = MemoryStore()
    kept_in(store, SMALL, ("a1-1", 1), ("a1-2", 2))
    files = files_of(store, SMALL)
    assert files.holds(WriteId("a1-1"), Step(1))
    assert files.holds(WriteId("a1-2"), Step(2))
    assert not files.holds(WriteId("a1-1"), Step(2))
    assert not files_of(store, SMALL, run_uid=RunUid("run-2")).holds(WriteId("a1-1"), Step(1))
    files.drop(WriteId("a1-1"))
    assert not files.holds(WriteId("a1-1"), Step(1))
    assert not files_of(MemoryStore(), SMALL).holds(WriteId("a1-1"), Step(1))


def test_each_block_waits_its_turn_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_files, "BLOCK_BYTES", 6 << 20)
    store, arena, asked = MemoryStore(), formatted(BIG), list[int]()
    content = stage_bytes(arena, BIG, "a1-1", 1)
    keep(store, arena, BIG, pace=asked.append)
    assert sum(asked) == BIG.data_bytes
    assert max(asked) == 6 << 20
    assert given_back(store, BIG, "a1-1", 1) == spans_of(content, BIG)


@pytest.mark.parametrize(("code", "stays"), [("no-space", False), ("io-error", True)])
def test_a_disk_without_room_keeps_nothing_of_the_file_and_all_of_the_other(code: str, stays: bool) -> None:
    before, arena = MemoryStore(), formatted(SMALL)
    content = stage_bytes(arena, SMALL, "a1-1", 1)
    keep(before, arena, SMALL)
    stage_bytes(arena, SMALL, "a1-2", 2)
    for write in range(3):  # of data, of the table, of the header
        store = before.copy()
        full = FaultyStore(store, Fail(write=write, when=When.MIDDLE, error=Unavailable("the disk", code=code)))
        with pytest.raises(Unavailable):
            keep(full, arena, SMALL)
        assert (files_of(store, SMALL).keys[1] in contents(store)) == stays
        assert given_back(store, SMALL, "a1-1", 1) == spans_of(content, SMALL)


def test_room_is_asked_for_while_a_file_is_new() -> None:
    store = MemoryStore()
    assert files_of(store, SMALL).new_bytes() == file_bytes(SMALL)
    kept_in(store, SMALL, ("a1-1", 1))
    assert files_of(store, SMALL).new_bytes() == file_bytes(SMALL)
    kept_in(store, SMALL, ("a1-2", 2))
    assert files_of(store, SMALL).new_bytes() == 0


def test_files_of_another_layout_give_way_one_after_the_other() -> None:
    store = MemoryStore()
    other = plan_rank(big_layout(), Rank(0))
    kept_in(store, other, ("a1-1", 1), ("a1-2", 2))
    content = kept_in(store, SMALL, ("a1-3", 3))
    assert given_back(store, other, "a1-2", 2) is not None or given_back(store, other, "a1-1", 1) is not None
    assert given_back(store, SMALL, "a1-3", 3) == spans_of(content["a1-3"], SMALL)
    kept_in(store, SMALL, ("a1-4", 4))
    assert {len(data) for data in contents(store).values()} == {file_bytes(SMALL)}


def test_a_file_of_another_run_is_not_believed_and_gives_way() -> None:
    store = MemoryStore()
    kept_in(store, SMALL, ("a1-1", 1))
    others = files_of(store, SMALL, run_uid=RunUid("run-2"))
    with pytest.raises(NotFound, match="is of another run, rank or layout"):
        others.find(WriteId("a1-1"), Step(1))


def test_a_dropped_snapshot_is_gone_and_the_other_stays() -> None:
    store = MemoryStore()
    kept = kept_in(store, SMALL, ("a1-1", 1), ("a1-2", 2))
    files_of(store, SMALL).drop(WriteId("a1-2"))
    assert given_back(store, SMALL, "a1-2", 2) is None
    with pytest.raises(NotFound, match=r"got rank-00000\.0 holds write a1-1 of step 1; rank-00000\.1 is unfinished$"):
        files_of(store, SMALL).find(WriteId("a1-2"), Step(2))
    assert given_back(store, SMALL, "a1-1", 1) == spans_of(kept["a1-1"], SMALL)


def test_a_header_can_be_read_by_people() -> None:
    store = MemoryStore()
    kept_in(store, SMALL, ("a1-1", 7))
    line, _, rest = read(store, files_of(store, SMALL).keys[0], PAGE_BYTES).partition(b"\n")
    assert re.match(rb'\{"crc32c":"[0-9a-f]{8}","record":\{"format":\{"major":1,"minor":0\},"run_uid":"run-1"', line)
    assert rest == bytes(len(rest))
    with pytest.raises(Invalid, match=r"expected format 1\.x, got 2\.0"):
        SnapshotHeader.decode(replace(decoded(line), format=FormatVersion(major=2, minor=0)).encode())


def decoded(line: bytes) -> SnapshotHeader:
    header = SnapshotHeader.decode((line + b"\n").ljust(PAGE_BYTES, b"\0"))
    assert header is not None
    return header


def put_header(store: MemoryStore, change: Callable[[SnapshotHeader], SnapshotHeader]) -> None:
    key = files_of(store, SMALL).keys[0]
    data = read(store, key, file_bytes(SMALL))
    header = SnapshotHeader.decode(data[:PAGE_BYTES])
    assert header is not None
    replace_file(store, key, change(header).encode() + data[PAGE_BYTES:])


def replace_file(store: MemoryStore, key: str, data: bytes) -> None:
    store.delete([key])
    store.create(key, data)
