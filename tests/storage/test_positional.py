"""Whole pages are found in any run, and arrive as they were, from any memory."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behemoth.storage.positional import PAGE_BYTES, BufferRun, new_bounce, page_runs, write_all, write_pages


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    fd = os.open(tmp_path_factory.mktemp("pages") / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


_LENGTHS = st.one_of(st.integers(1, 3 * PAGE_BYTES), st.sampled_from([PAGE_BYTES, 4 * PAGE_BYTES]))


def _run(offset_bytes: int, lengths: list[int], askew: list[int]) -> BufferRun:
    """Views of memory that begins `askew` bytes behind a page."""
    views = []
    for length, skew in zip(lengths, askew, strict=False):
        room = new_bounce()
        room[skew : skew + length] = os.urandom(length)
        views.append(room[skew : skew + length])
    return offset_bytes, views


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset_bytes=st.one_of(st.integers(0, 3 * PAGE_BYTES), st.just(PAGE_BYTES)),
    lengths=st.lists(_LENGTHS, min_size=1, max_size=6),
    askew=st.lists(st.sampled_from([0, 0, 64, 100]), min_size=6, max_size=6),
    bounce_pages=st.integers(1, 4),
)
def test_pages_and_edges_together_are_the_run(
    fd: int, offset_bytes: int, lengths: list[int], askew: list[int], bounce_pages: int
) -> None:
    run = _run(offset_bytes, lengths, askew)
    os.ftruncate(fd, 0)
    pages, edges = page_runs(run, min_bytes=PAGE_BYTES)
    for edge in edges:
        write_all(fd, edge)
    if pages is not None:
        assert pages[0] % PAGE_BYTES == 0
        assert sum(view.nbytes for view in pages[1]) % PAGE_BYTES == 0
        write_pages(fd, pages, new_bounce()[: bounce_pages * PAGE_BYTES])
    expected = b"".join(run[1])
    assert os.pread(fd, len(expected) + 1, offset_bytes) == expected


def test_pages_are_written_from_page_boundaries_only(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    pwritev = os.pwritev

    def watched(fd: int, views: list[memoryview], at: int) -> int:
        calls.extend((int(np.frombuffer(view, np.uint8).ctypes.data), view.nbytes) for view in views)
        return pwritev(fd, views, at)

    monkeypatch.setattr(os, "pwritev", watched)
    run = _run(0, [8 * PAGE_BYTES, 4, PAGE_BYTES - 4, 5 * PAGE_BYTES, 100, PAGE_BYTES - 100], [0, 3, 5, 64, 0, 0])
    write_pages(fd, run, new_bounce())
    assert all(address % PAGE_BYTES == 0 and length % PAGE_BYTES == 0 for address, length in calls)
    assert calls[0][1] == 8 * PAGE_BYTES, "memory that lies right is not copied"


@pytest.mark.parametrize(
    ("offset_bytes", "length"), [(0, PAGE_BYTES - 1), (1, 2 * PAGE_BYTES - 2), (0, 2 * PAGE_BYTES)]
)
def test_a_run_below_the_least_size_stays_whole(offset_bytes: int, length: int) -> None:
    run = _run(offset_bytes, [length], [0])
    assert page_runs(run, min_bytes=3 * PAGE_BYTES) == (None, [run])
