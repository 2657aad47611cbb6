"""Parts of pieces that are too small for one each: how few bytes must move, and who uploads nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.checkpoint import part_cuts
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.part_cuts import FEW_PIECES, MAX_OFFSETS, cut_parts, num_offsets
from behemoth.checkpoint.uploads import plan_uploads
from behemoth.ports import MAX_PARTS, MIN_PART_BYTES
from behemoth.spec.mesh import Mesh
from checkpoint.company_rig import small_parts


def kept(bounds: tuple[int, ...], begin: int, end: int) -> list[int]:
    """Bytes that each piece has of a part."""
    return [max(min(end, stop) - max(begin, start), 0) for start, stop in pairwise(bounds)]


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 19), min_size=1, max_size=40), offset=st.integers(0, 9))
def test_parts_tile_the_shard_and_of_those_chosen_at_once_no_two_share_a_piece(sizes: list[int], offset: int) -> None:
    bounds = tuple(accumulate([*sizes, 6], initial=0))
    with small_parts(20, 1):
        runs = cut_parts(bounds, 1, offset)
    assert [run.begin for run in runs] == [0, *(run.end for run in runs[:-1])]
    assert runs[-1].end == bounds[-1]
    assert all(run.end - run.begin >= 20 for run in runs[:-1])
    for run in runs:
        held = kept(bounds, run.begin, run.end)
        assert sum(held[run.first : run.last + 1]) == run.end - run.begin
        assert min(held[run.first], held[run.last]) > 0
    if part_cuts._are_joined_closely(bounds, 20, 1):
        for turn in (0, 1):
            of_turn = [(run.first, run.last) for run in runs if run.turn == turn]
            assert all(last < first for (_, last), (first, _) in pairwise(of_turn))


@pytest.mark.parametrize("num_parts", [MAX_PARTS - 1, MAX_PARTS, MAX_PARTS + 1])
def test_no_shard_has_more_parts_than_an_upload_may_have(num_parts: int) -> None:
    """Of pieces that would make so many parts if each part were as small as parts may be."""
    piece = MIN_PART_BYTES // 5 + 1
    runs = cut_parts(tuple(range(0, 5 * num_parts * piece + 1, piece)), 1)
    assert MAX_PARTS // 2 < len(runs) <= MAX_PARTS


@settings(max_examples=60, deadline=None)
@given(piece=st.integers(11, 38), jitter=st.lists(st.integers(0, 1), min_size=5, max_size=24))
def test_nearly_as_few_bytes_move_as_the_best_of_all_cuts_makes_move(piece: int, jitter: list[int]) -> None:
    bounds = tuple(accumulate((piece + one for one in jitter), initial=0))
    with small_parts(40, 1):
        runs = cut_parts(bounds, 1)
    ours = sum(max(kept(bounds, run.begin, run.end)) for run in runs)
    assert ours >= 0.9 * most_kept(bounds, 40)


def most_kept(bounds: tuple[int, ...], least: int) -> int:
    """By trying all cuts: the best for the first `end` bytes follows from the best for fewer."""
    best = [0] + [-1] * bounds[-1]
    for end in range(1, bounds[-1] + 1):
        for begin in range(max(0, end - 3 * least), end - least + 1):
            if best[begin] >= 0:
                best[end] = max(best[end], best[begin] + max(kept(bounds, begin, end)))
    return max(best[-1], max(kept(bounds, 0, bounds[-1])))


@pytest.mark.parametrize(("share", "above"), [(0.26, 0.02), (0.4, 0.01), (0.5, 0.01), (0.6, 0.01), (0.6656, 0.03)])
def test_what_moves_is_near_what_parts_of_five_mebibytes_must_move(share: float, above: float) -> None:
    """Who uploads a part of m bytes holds s of it at most, one piece: 1 - s / m of the bytes move at least."""
    piece = int(share * MIN_PART_BYTES)
    bounds = tuple(range(0, 126 * piece, piece))
    ours = sum(max(kept(bounds, run.begin, run.end)) for run in cut_parts(bounds, 1))
    assert 1 - share - 0.001 <= 1 - ours / bounds[-1] <= 1 - share + above


def test_with_another_offset_another_holder_uploads_nothing() -> None:
    piece = MIN_PART_BYTES * 7 // 10
    bounds = tuple(range(0, 61 * piece, piece))
    assert num_offsets(bounds, 1) == MAX_OFFSETS == 3
    uploads = np.zeros(60, dtype=int)
    for offset in range(MAX_OFFSETS):
        for run in cut_parts(bounds, 1, offset):
            uploads[int(np.argmax(kept(bounds, run.begin, run.end)))] += 1
    assert uploads[3:-3].min() >= 1
    assert num_offsets(bounds, 2) == 1  # replicas share out what they hold
    small = tuple(range(0, 61 * (MIN_PART_BYTES // FEW_PIECES), MIN_PART_BYTES // FEW_PIECES))
    assert num_offsets(small, 1) == 1


def test_low_bits_of_a_split_master_move_little_more_than_they_must_and_ranks_upload_alike() -> None:
    """As the reference Behemoth's experts have them: pieces of 3.49 MB, beside weights that every rank holds."""
    elements = 24 * 1_744_830
    flat = ArraySpec(name="low", dtype="uint16", shape=(elements,), flat_over="dp")
    arrays = [replace(flat, name=f"low{at}") for at in range(12)]
    arrays += [ArraySpec(name=f"high{at}", dtype="bfloat16", shape=(elements,)) for at in range(12)]
    plan = plan_uploads(Layout(mesh=Mesh(dp=24, edp=24), arrays=tuple(arrays), sharding="box"))
    # 24 pieces are 15 parts, so that 9 of them move at least; joined two by two, 12 would.
    assert 9 / 24 <= plan.exchanged_bytes / (12 * flat.num_bytes) <= 10.5 / 24
    assert plan.sent_bytes.max() - plan.sent_bytes.min() <= 2 * MIN_PART_BYTES
