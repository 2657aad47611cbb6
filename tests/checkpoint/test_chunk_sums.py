"""What columns on several threads find of the spans of all ranks is what one span after the other adds up to, and they
find it exactly where `coverage` has no objection."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.checkpoint import chunk_sums as chunk_sums_module
from behemoth.checkpoint.chunk_sums import ChunkSums, chunk_sums
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.crc import combined
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.span_table import SpanTable, WrittenSpan
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import toy_layout
from checkpoint.random_layouts import layouts, small_chunks

LAYOUT = toy_layout()
THREADS = st.sampled_from([1, 3])
SIZES = st.tuples(st.sampled_from([1, 7, 1 << 16]), st.sampled_from([1, 5, 1 << 17]), st.sampled_from([1, 3, 256]))
SEEDS = st.integers(0, 1 << 32)
ANY = st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1), st.sampled_from([2**32, 2**63 - 1, 2**63, 2**64 - 1]))


@contextmanager
def sizes_of(rows_of_blocks: int, rows_of_parts: int, num_stretches: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_sums_module, "_BLOCK_ROWS", rows_of_blocks)
        patch.setattr(chunk_sums_module, "_PART_ROWS", rows_of_parts)
        patch.setattr(chunk_sums_module, "_NUM_STRETCHES", num_stretches)
        yield


def exact_spans(layout: Layout, rng: random.Random) -> list[WrittenSpan]:
    """Every chunk cut anywhere, in any order; some arrays are all zero."""
    spans: list[WrittenSpan] = []
    for array, grid in enumerate(grids(layout)):
        is_zero = rng.random() < 0.3
        for chunk, need in enumerate(grid.all_data_bytes().tolist()):
            cuts = sorted(rng.sample(range(1, need), min(need - 1, rng.choice([0, 0, 1, 3]))))
            for begin, end in zip([0, *cuts], [*cuts, need], strict=True):
                is_other = not is_zero and rng.random() < 0.7
                spans.append(WrittenSpan(array, chunk, begin, end - begin, rng.getrandbits(32), not is_other))
    if rng.random() < 0.8:
        rng.shuffle(spans)
    return spans


def in_tables(spans: list[WrittenSpan], rng: random.Random) -> list[SpanTable]:
    """As if several ranks had written them; some have written nothing."""
    cuts = sorted(rng.choices(range(len(spans) + 1), k=rng.choice([0, 1, 5])))
    return [SpanTable.of(spans[low:high]) for low, high in zip([0, *cuts], [*cuts, len(spans)], strict=True)]


def assert_sums(layout: Layout, spans: list[WrittenSpan], sums: ChunkSums) -> None:
    """One chunk after the other, one span after the other."""
    chunks = [(array, chunk) for array, grid in enumerate(grids(layout)) for chunk in range(grid.num_chunks)]
    of_chunks: dict[tuple[int, int], list[tuple[int, int]]] = {place: [] for place in chunks}
    for row, span in enumerate(spans):
        of_chunks[span.array, span.chunk].append((span.offset, row))
    for at, place in enumerate(chunks):
        rows = [row for _, row in sorted(of_chunks[place])]
        assert sums.num_spans[at] == len(rows)
        assert (sums.first_row[at], sums.last_row[at]) == (rows[0], rows[-1])
        assert sums.data_crc[at] == combined((spans[row].crc, spans[row].length) for row in rows)
    arrays, numbers = sums.places(np.arange(len(chunks)))
    assert list(zip(arrays.tolist(), numbers.tolist(), strict=True)) == chunks
    for array in range(len(layout.arrays)):
        assert sums.are_zero[array] == all(span.is_zero for span in spans if span.array == array)
        assert chunks[sums.first_chunk[array]] == (array, 0)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), chunk_bytes=st.sampled_from([16, 64]), sizes=SIZES, threads=THREADS, seed=SEEDS)
def test_spans_that_cover_everything_once_add_up_as_one_after_the_other(
    layout: Layout, chunk_bytes: int, sizes: tuple[int, int, int], threads: int, seed: int
) -> None:
    rng = random.Random(seed)
    with small_chunks(chunk_bytes), sizes_of(*sizes):
        spans = exact_spans(layout, rng)
        sums = chunk_sums(layout, in_tables(spans, rng), threads=threads)
        assert sums is not None
        assert_sums(layout, spans, sums)


@settings(max_examples=300, deadline=None)
@given(
    seed=SEEDS,
    changes=st.lists(st.tuples(st.sampled_from(WrittenSpan._fields[:4]), st.integers(-12, 12) | ANY), max_size=2),
    copies=st.integers(0, 2),
    sizes=SIZES,
    threads=THREADS,
)
def test_they_add_up_exactly_where_no_fault_is_found(
    seed: int, changes: list[tuple[str, int]], copies: int, sizes: tuple[int, int, int], threads: int
) -> None:
    """Spans that are moved, made longer or shorter, doubled or taken away."""
    rng = random.Random(seed)
    spans = exact_spans(LAYOUT, rng)
    for name, by in changes:
        at = rng.randrange(len(spans))
        limit = 1 << (32 if name == "array" else 64)
        spans[at] = spans[at]._replace(**{name: (getattr(spans[at], name) + by) % limit})
    for _ in range(copies):
        if rng.random() < 0.5:
            spans.insert(rng.randrange(len(spans)), rng.choice(spans))
        else:
            spans.pop(rng.randrange(len(spans)))
    joined = SpanTable.joined([SpanTable.of(spans)])
    array, chunk, offset, length, *_ = (column.astype(np.int64) for column in joined)
    fault = check_coverage(LAYOUT, Extents(array=array, chunk=chunk, offset=offset, length=length))
    with sizes_of(*sizes):
        sums = chunk_sums(LAYOUT, in_tables(spans, rng), threads=threads)
    assert (sums is None) == (fault is not None)
    if sums is not None:
        assert_sums(LAYOUT, spans, sums)


@pytest.mark.parametrize(
    "outside",
    [
        (len(LAYOUT.arrays), 0, 0, 1),
        (2**32 - 1, 0, 0, 1),
        (0, grids(LAYOUT)[0].num_chunks, 0, 1),
        (0, 2**64 - 1, 0, 1),
        (0, 0, 0, 0),
        (0, 0, 7, 0),
        (0, 0, 2**64 - 1, 1),
        (0, 0, 1, 2**64 - 1),
    ],
)
def test_a_span_of_nothing_or_outside_is_refused_beside_a_whole_checkpoint(outside: tuple[int, int, int, int]) -> None:
    spans = exact_spans(LAYOUT, random.Random(1))
    assert chunk_sums(LAYOUT, [SpanTable.of(spans)], threads=1) is not None
    more = SpanTable.of([WrittenSpan(*outside, 0, True)])
    assert chunk_sums(LAYOUT, [SpanTable.of(spans), more], threads=1) is None
    assert chunk_sums(LAYOUT, [more, SpanTable.of(spans)], threads=1) is None


@pytest.mark.parametrize("sizes", [(1, 1, 256), (7, 5, 3), (1 << 16, 1 << 17, 256)], ids=str)
def test_each_span_is_needed_where_it_is_and_only_once(sizes: tuple[int, int, int]) -> None:
    spans = exact_spans(LAYOUT, random.Random(2))
    with sizes_of(*sizes):
        assert chunk_sums(LAYOUT, [SpanTable.of(spans)], threads=1) is not None
        for at, span in enumerate(spans):
            longer, moved = span._replace(length=span.length + 1), span._replace(offset=span.offset + 1)
            for other in ([], [span, span], [longer], [moved], [span._replace(length=span.length - 1)]):
                changed = [*spans[:at], *other, *spans[at + 1 :]]
                assert chunk_sums(LAYOUT, [SpanTable.of(changed)], threads=1) is None


def test_a_span_that_reaches_into_the_next_chunk_is_none_of_this_one() -> None:
    """As a line of bytes it would fit: what is missing there is what it has too much."""
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(64,)),))
    with small_chunks(16):
        assert [grid.num_chunks for grid in grids(layout)] == [4]
        spans = [WrittenSpan(0, chunk, 0, 16, 7, False) for chunk in range(4)]
        assert chunk_sums(layout, [SpanTable.of(spans)], threads=1) is not None
        spans[1:3] = [WrittenSpan(0, 1, 0, 20, 7, False), WrittenSpan(0, 2, 4, 12, 7, False)]
        assert chunk_sums(layout, [SpanTable.of(spans)], threads=1) is None


@pytest.mark.parametrize("less", [0, 1])
def test_chunks_of_more_bytes_than_32_bits_count_are_summed_up(less: int) -> None:
    half = 4294967311  # a prime, so that no chunk is smaller than a rank's share
    layout = Layout(
        mesh=Mesh(tp=2, edp=2), arrays=(ArraySpec(name="w", dtype="uint8", shape=(2 * half,), dims=((0, "tp"),)),)
    )
    assert [grid.num_chunks for grid in grids(layout)] == [2]
    spans = [WrittenSpan(0, 1, 0, half, 5, False), WrittenSpan(0, 0, half - 2, 2, 6, False)]
    spans.append(WrittenSpan(0, 0, 0, half - 2 - less, 7, False))
    sums = chunk_sums(layout, [SpanTable.of(spans[:1]), SpanTable.of(spans[1:])], threads=1)
    assert (sums is None) == (less > 0)
    if sums is not None:
        assert_sums(layout, spans, sums)


def test_a_layout_of_more_bytes_than_are_counted_is_refused() -> None:
    arrays = tuple(ArraySpec(name=name, dtype="uint8", shape=(1 << 31, 1 << 30)) for name in "abcd")
    with pytest.raises(Invalid, match=r"expected fewer than 2\^63 bytes, got 9223372036854775808"):
        chunk_sums(Layout(mesh=Mesh(), arrays=arrays), [], threads=1)


def test_nothing_is_covered_by_no_spans_and_a_layout_without_arrays_by_none() -> None:
    assert chunk_sums(LAYOUT, [SpanTable.of(())] * 4, threads=2) is None
    nothing = Layout(mesh=Mesh(), arrays=())
    assert chunk_sums(nothing, [SpanTable.of(())], threads=2) is not None
    assert chunk_sums(nothing, [SpanTable.of([WrittenSpan(0, 0, 0, 1, 0, False)])], threads=2) is None
