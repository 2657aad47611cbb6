"""A generation of an arena is whole or not there, whatever is killed when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import ARENA_HEADER_BYTES
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.staging import Stager, stage, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import (
    arena_of,
    local_arrays,
    logical_arrays,
    out_buffers,
    raw_bytes,
    toy_layout,
    unstaged,
)

LAYOUT = toy_layout()
PLAN = plan_rank(LAYOUT, Rank(1))
LOCAL = local_arrays(LAYOUT, PLAN.rank, logical_arrays(LAYOUT, 1))


@pytest.fixture
def fd() -> Iterator[int]:
    descriptor = os.memfd_create("test-arena")
    yield descriptor
    os.close(descriptor)


def crcs_of(arena: Arena, plan: RankPlan, generation: int) -> list[int]:
    data = arena.data(generation)
    return [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in plan.spans]


def test_another_process_sees_the_same_snapshot(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    assert os.fstat(fd).st_size == Arena.size_bytes(PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(7))
    other = Arena.open(fd)
    (snapshot,) = other.held()
    assert (snapshot.step, snapshot.write_id, snapshot.is_verified) == (7, "a1-1", False)
    assert snapshot.layout_digest == LAYOUT.digest
    assert unstaged(other, PLAN, 0) == {name: raw_bytes(array) for name, array in LOCAL.items()}


def test_arrays_that_are_left_out_keep_what_the_program_has(fd: int) -> None:
    with_all = out_buffers(PLAN)
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
    unstage(arena, PLAN, 0, with_all, is_checked=True)
    name = next(piece.name for piece in PLAN.pieces if piece.nbytes)
    some = out_buffers(PLAN)
    before = some[name].copy()
    unstage(arena, PLAN, 0, some, is_checked=True, left_out=[PLAN.pieces[0].array], threads=2)
    assert PLAN.pieces[0].name == name
    for other, array in some.items():
        assert array.tobytes() == (before if other == name else with_all[other]).tobytes()
    assert with_all[name].tobytes() != before.tobytes()


def test_generations_are_used_in_turn_and_the_newest_is_kept(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    used = [stage(arena, PLAN, LOCAL, WriteId(f"a1-{step}"), Step(step)).generation for step in (9, 3, 4)]
    assert used == [0, 1, 0]
    assert [snapshot.step for snapshot in arena.held()] == [3, 4]  # by age, not by step


def test_a_half_copied_generation_is_no_snapshot_and_the_other_stays(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
    stager = Stager(arena, PLAN, LOCAL, write_id=WriteId("a1-2"), step=Step(2))
    stager.begin()
    stager.copy(["model/norm"])  # and the worker dies here
    assert [snapshot.step for snapshot in Arena.open(fd).held()] == [1]
    with pytest.raises(NotFound):
        unstage(arena, PLAN, 1, LOCAL)
    with pytest.raises(NotFound):
        arena.data(1)


def test_memory_whose_first_page_is_cut_off_torn_or_of_another_size_is_no_arena(fd: int) -> None:
    os.ftruncate(fd, 100)
    with pytest.raises(Corrupt, match="expected at least 4096 bytes, got 100"):
        Arena.open(fd)
    arena = Arena.format(fd, PLAN)
    for byte in range(ARENA_HEADER_BYTES):
        arena._memory[byte] ^= 1
        with pytest.raises(Corrupt, match="expected its intact header, got a damaged one or none"):
            Arena.open(fd)
        arena._memory[byte] ^= 1
    os.ftruncate(fd, Arena.size_bytes(PLAN) + 1)
    with pytest.raises(Corrupt, match=f"expected its intact header, got one of {Arena.size_bytes(PLAN)} bytes"):
        Arena.open(fd)


def test_a_torn_header_is_no_snapshot(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
    head = arena._head(0)
    for byte in range(head, head + 136):
        arena._memory[byte] ^= 1
        assert arena.held() == (), byte - head
        arena._memory[byte] ^= 1
    assert len(arena.held()) == 1


def test_beginning_again_gives_the_old_snapshot_up_first(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1), generation=0)
    arena.begin(0, WriteId("a1-2"), Step(2), LAYOUT.digest)
    assert arena.held() == ()
    arena.discard(0)
    with pytest.raises(Conflict, match="expected it copying, got empty"):
        arena.seal(0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_flipped_bit_in_staged_memory_is_found(fd: int, threads: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
    with pytest.raises(NotFound, match="expected it verified, got staged"):
        unstage(arena, PLAN, 0, out_buffers(PLAN), threads=threads)
    arena.record_crcs(0, arena.sequence(0), crcs_of(arena, PLAN, 0))
    for span in PLAN.spans:
        arena.data(0)[span.arena_offset + span.length - 1] ^= 4
        with pytest.raises(Corrupt, match=f"{span.length} bytes at {span.arena_offset}"):
            unstage(arena, PLAN, 0, out_buffers(PLAN), threads=threads)
        arena.data(0)[span.arena_offset + span.length - 1] ^= 4
    arena._memory[arena._head(0) + 4096] ^= 1
    with pytest.raises(Corrupt, match="over its table of CRCs, got"):
        unstage(arena, PLAN, 0, out_buffers(PLAN), threads=threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_large_pieces_are_checked_and_copied_in_blocks(threads: int) -> None:
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="large", dtype="uint8", shape=(20_000_003,)),))
    plan = plan_rank(layout, Rank(0))
    large = np.random.default_rng(1).integers(0, 256, 20_000_003, dtype=np.uint8)
    with arena_of(plan) as arena:
        stage(arena, plan, {"large": large.data}, WriteId("a1-1"), Step(1))
        arena.record_crcs(0, arena.sequence(0), crcs_of(arena, plan, 0))
        out = np.zeros_like(large)
        unstage(arena, plan, 0, {"large": out.data}, threads=threads)
        assert np.array_equal(out, large)
        arena.data(0)[-70] ^= 1
        with pytest.raises(Corrupt, match=r"array '\S+': expected .* that were staged, got others"):
            unstage(arena, plan, 0, {"large": out.data}, threads=threads)


def test_crcs_of_a_snapshot_that_was_replaced_are_not_recorded(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1), generation=0)
    old, crcs = arena.sequence(0), crcs_of(arena, PLAN, 0)
    stage(arena, PLAN, LOCAL, WriteId("a2-1"), Step(2), generation=0)
    with pytest.raises(Conflict, match="replaced"):
        arena.record_crcs(0, old, crcs)
    assert not arena.snapshot(0).is_verified
    arena.begin(0, WriteId("a3-1"), Step(3), LAYOUT.digest)
    with pytest.raises(NotFound, match="expected a snapshot in generation 0, got none"):
        arena.record_crcs(0, arena.sequence(0), crcs)
    arena.seal(0)


def test_no_sequence_is_given_twice_even_when_a_header_is_torn(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    for step in range(3):
        stage(arena, PLAN, LOCAL, WriteId(f"a1-{step}"), Step(step), generation=0)
    newest = arena.sequence(0)
    arena._memory[arena._head(0) + 8] ^= 1
    arena.begin(1, WriteId("a2-1"), Step(9), LAYOUT.digest)
    assert arena.sequence(1) == newest + 1


def test_an_arena_of_another_layout_or_rubbish_is_refused(fd: int) -> None:
    with pytest.raises(Corrupt, match="at least 4096 bytes, got 0"):
        Arena.open(fd)
    os.ftruncate(fd, 1 << 16)
    with pytest.raises(Corrupt, match="intact header"):
        Arena.open(fd)
    arena = Arena.format(fd, PLAN)
    other = Layout(mesh=Mesh(), arrays=LAYOUT.arrays)
    with pytest.raises(Invalid, match="expected layout"):
        arena.begin(0, WriteId("a1-1"), Step(1), other.digest)
    with pytest.raises(Invalid, match="expected layout"):
        unstage(arena, plan_rank(other, Rank(0)), 0, {})
    with pytest.raises(Invalid, match="write id"):
        arena.begin(0, WriteId("x" * 65), Step(1), LAYOUT.digest)
    with pytest.raises(Invalid, match="CRCs, got 1"):
        arena.record_crcs(0, 1, [1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model/norm": np.zeros(3, np.float32)}, "'model/norm': expected 132 bytes, got 12"),
        ({"extra": np.zeros(3)}, r"0 missing \[\] and 1 unknown \['extra'\]"),
        ({"model/norm": np.zeros((33, 2), np.float32)[:, 0]}, "C-contiguous"),
    ],
)
def test_buffers_that_do_not_fit_are_refused_before_the_arena_is_touched(
    fd: int, change: dict[str, Any], text: str
) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1), generation=0)
    with pytest.raises(Invalid, match=text):
        stage(arena, PLAN, {**LOCAL, **change}, WriteId("a1-2"), Step(2), generation=0)
    assert len(arena.held()) == 1


def test_a_missing_or_read_only_buffer_is_refused(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
    missing = {name: array for name, array in LOCAL.items() if name != "model/norm"}
    with pytest.raises(Invalid, match="'model/norm'"):
        stage(arena, PLAN, missing, WriteId("a1-2"), Step(2))
    with pytest.raises(Invalid, match="'model/norm': expected a writable buffer"):
        unstage(arena, PLAN, 0, {**LOCAL, "model/norm": LOCAL["model/norm"].tobytes()})


def test_a_stager_copies_in_two_parts_and_each_array_once(fd: int) -> None:
    arena = Arena.format(fd, PLAN)
    stager = Stager(arena, PLAN, LOCAL, write_id=WriteId("a1-1"), step=Step(1))
    stager.copy(["model/scale"])
    with pytest.raises(Invalid, match="'model/scale'"):
        stager.copy(["model/scale"])
    stager.seal()
    assert unstaged(arena, PLAN, 0) == {name: raw_bytes(array) for name, array in LOCAL.items()}


def write(arena: Arena, *, cancelled: bool = False, layout: Layout = LAYOUT) -> None:
    write_rank(
        MemoryStore(),
        RankWrite(
            prefix="steps/000000001-a1-1",
            layout=layout,
            plan=plan_rank(layout, Rank(1)),
            arena=arena,
            generation=0,
            attempt=Attempt(1),
            threads=1,
            cancelled=lambda: cancelled,
        ),
    )


def test_a_write_records_all_crcs_even_of_bytes_that_others_own() -> None:
    with arena_of(PLAN) as arena:
        stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
        write(arena)
        assert arena.crcs(0).tolist() == crcs_of(arena, PLAN, 0)
        assert arena.snapshot(0).is_verified


def test_a_cancelled_write_and_one_without_a_snapshot_are_refused() -> None:
    with arena_of(PLAN) as arena:
        with pytest.raises(NotFound, match="expected a snapshot in generation 0, got none"):
            write(arena)
        stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1))
        with pytest.raises(Conflict, match="cancelled"):
            write(arena, cancelled=True)
        with pytest.raises(Invalid, match="of one layout and rank"):
            write(arena, layout=toy_layout(scale_may_be_zero=True))


def test_a_snapshot_that_is_replaced_while_it_is_written_gives_no_receipt() -> None:
    with arena_of(PLAN) as arena:
        stage(arena, PLAN, LOCAL, WriteId("a1-1"), Step(1), generation=0)

        def replaces() -> bool:
            stage(arena, PLAN, LOCAL, WriteId("a1-2"), Step(2), generation=0)
            return False

        with pytest.raises(Conflict, match="its snapshot was replaced"):
            write_rank(
                MemoryStore(),
                RankWrite(
                    prefix="steps/000000001-a1-1",
                    layout=LAYOUT,
                    plan=PLAN,
                    arena=arena,
                    generation=0,
                    attempt=Attempt(1),
                    threads=1,
                    cancelled=replaces,
                ),
            )
