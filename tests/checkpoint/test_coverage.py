"""Interval arithmetic finds what counting each byte finds: whatever covers the arrays otherwise than exactly once."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.grid import grids
from checkpoint.checkpoint_rig import toy_layout

Row = tuple[int, int, int, int]
LAYOUT = toy_layout()
NEEDED = {
    (array, chunk): int(need)
    for array, grid in enumerate(grids(LAYOUT))
    for chunk, need in enumerate(grid.all_data_bytes())
}
WHOLE: list[Row] = [(*place, 0, need) for place, need in NEEDED.items()]


SEEDS = st.integers(0, 1 << 32)


def exact_rows(seed: int) -> list[Row]:
    """Every chunk cut anywhere, in any order."""
    rows: list[Row] = []
    rng = random.Random(seed)
    for place, need in NEEDED.items():
        cuts = sorted(rng.sample(range(1, need), min(need - 1, rng.randint(0, 3))))
        rows += [(*place, begin, end - begin) for begin, end in zip([0, *cuts], [*cuts, need], strict=True)]
    rng.shuffle(rows)
    return rows


def faults_by_counting(rows: list[Row]) -> set[str]:
    """Code of everything that is wrong."""
    found, met = set[str](), Counter[Row]()
    for array, chunk, begin, length in rows:
        met.update((array, chunk, at, 0) for at in range(begin, begin + length))
        if length <= 0 or begin < 0 or begin + length > NEEDED.get((array, chunk), -1):
            found.add("span-outside")
    if any(count > 1 for count in met.values()):
        found.add("span-twice")
    if any(not met[(*place, at, 0)] for place, need in NEEDED.items() for at in range(need)):
        found.add("span-missing")
    return found


@given(SEEDS)
def test_every_byte_once_is_no_fault_however_the_chunks_are_cut(seed: int) -> None:
    assert check_coverage(LAYOUT, Extents.of(exact_rows(seed))) is None


@given(SEEDS, st.integers(0, 3), st.integers(-12, 12))
def test_a_changed_extent_is_found_where_counting_each_byte_finds_it(seed: int, column: int, by: int) -> None:
    rows = exact_rows(seed)
    at = seed % len(rows)
    changed = list(rows[at])
    changed[column] += by
    rows[at] = (changed[0], changed[1], changed[2], changed[3])
    expected = faults_by_counting(rows)
    fault = check_coverage(LAYOUT, Extents.of(rows))
    assert (fault is None) == (not expected)
    if fault is not None:
        assert fault.code in expected
        assert fault.row == at or fault.code != "span-outside"


@pytest.mark.parametrize(
    "outside",
    [(len(LAYOUT.arrays), 0, 0, 1), (-1, 0, 0, 1), (0, grids(LAYOUT)[0].num_chunks, 0, 1), (0, -1, 0, 1), (0, 0, 0, 0)],
)
def test_an_extent_just_outside_is_refused_beside_a_whole_checkpoint(outside: Row) -> None:
    fault = check_coverage(LAYOUT, Extents.of([*WHOLE, outside]))
    assert fault is not None
    assert (fault.code, fault.row) == ("span-outside", len(WHOLE))


def test_a_hole_is_not_made_good_by_as_many_bytes_that_are_covered_twice() -> None:
    first, *others = WHOLE
    need = NEEDED[first[:2]]
    fault = check_coverage(LAYOUT, Extents.of([*others, (0, 0, 0, need - 8), (0, 0, need - 12, 8)]))
    assert fault is not None
    assert fault.code == "span-twice"


def test_a_fault_says_how_many_bytes_nobody_covers_and_where() -> None:
    first, *others = WHOLE
    need = NEEDED[first[:2]]
    fault = check_coverage(LAYOUT, Extents.of([*others, (0, 0, 0, need - 8)]))
    assert fault is not None
    assert fault.message == f"array {LAYOUT.arrays[0].name!r}, chunk 0: 8 of {need} bytes are covered by nobody"
    assert (fault.array, fault.chunk, fault.row) == (0, 0, -1)


@given(st.lists(st.tuples(*[st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**63 - 1))] * 4), max_size=30))
def test_rows_are_put_in_order_whatever_numbers_they_have(rows: list[Row]) -> None:
    expected = sorted(range(len(rows)), key=lambda at: rows[at][:3])
    assert Extents.of(rows).order.tolist() == expected
