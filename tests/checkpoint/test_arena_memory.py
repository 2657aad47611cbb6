"""Shared memory lies where large pages fit, is there as a whole once it was taken, and goes with its last view."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from behemoth.base.errors import Unavailable
from behemoth.checkpoint import arena_memory
from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.arena_memory import LARGE_BYTES, before_unmapping, enter, map_shared, take

NAME = "test-arena-memory"
SIZE_BYTES = 3 * LARGE_BYTES + 4096


@pytest.fixture
def fd() -> Iterator[int]:
    descriptor = os.memfd_create(NAME)
    os.ftruncate(descriptor, SIZE_BYTES)
    yield descriptor
    os.close(descriptor)


def resident_bytes() -> list[int]:
    """Of each mapping of the memfd in this process."""
    found: list[int] = []
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_ours = f"memfd:{NAME}" in line
        elif is_ours and line.startswith("Rss:"):
            found.append(int(line.split()[1]) << 10)
    return found


def test_a_mapping_begins_where_a_large_page_may(fd: int) -> None:
    views = [map_shared(fd, SIZE_BYTES) for _ in range(3)]
    assert [address_of(view) % LARGE_BYTES for view in views] == [0, 0, 0]
    assert [view.nbytes for view in views] == [SIZE_BYTES] * 3


def test_what_one_mapping_is_given_another_sees_after_the_descriptor_is_closed(fd: int) -> None:
    again = os.dup(fd)
    one, other = map_shared(fd, SIZE_BYTES), map_shared(again, SIZE_BYTES)
    os.close(again)
    one[-3:] = b"end"
    assert bytes(other[-3:]) == b"end"


def test_it_takes_memory_only_when_told_and_then_all_of_it(fd: int) -> None:
    view = map_shared(fd, SIZE_BYTES)
    assert resident_bytes() == [0]
    take(view)
    assert resident_bytes() == [SIZE_BYTES]
    assert not any(np.frombuffer(view, dtype=np.uint8))


def test_pages_that_are_there_are_entered_into_another_mapping(fd: int) -> None:
    take(map_shared(fd, SIZE_BYTES))
    view = map_shared(fd, SIZE_BYTES)
    enter(view)
    assert resident_bytes() == [SIZE_BYTES]


def test_the_mapping_goes_with_the_last_view_of_it(fd: int) -> None:
    view = map_shared(fd, SIZE_BYTES)
    part = view[5:10]
    view.release()
    part[:] = b"alive"
    assert len(resident_bytes()) == 1
    part.release()
    gc.collect()
    assert resident_bytes() == []


def test_who_wants_to_know_is_told_after_the_last_view_and_before_the_memory_goes(fd: int) -> None:
    view = map_shared(fd, SIZE_BYTES)
    seen: list[int] = []
    before_unmapping(view, lambda: seen.append(len(resident_bytes())))
    part = view[5:10]
    view.release()
    gc.collect()
    assert seen == []
    part.release()
    gc.collect()
    assert (seen, resident_bytes()) == ([1], [])


def test_an_older_kernel_has_the_pages_too(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_memory, "_MADVISE", refusing(errno.EINVAL))
    view = map_shared(fd, SIZE_BYTES)
    take(view)
    assert resident_bytes() == [SIZE_BYTES]


def test_too_little_memory_is_told_and_not_found_out_by_the_first_copy(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_memory, "_MADVISE", refusing(errno.ENOMEM))
    with pytest.raises(Unavailable, match=f"arena of {SIZE_BYTES} bytes: expected that much memory") as raised:
        take(map_shared(fd, SIZE_BYTES))
    assert raised.value.code == "arena-memory"


def test_more_than_a_process_can_map_is_refused_and_leaves_nothing(fd: int) -> None:
    before = Path("/proc/self/maps").read_text().count("\n")
    with pytest.raises(Unavailable, match="expected to map"):
        map_shared(fd, 1 << 60)
    assert Path("/proc/self/maps").read_text().count("\n") == before


def refusing(code: int) -> object:
    def madvise(_address: int, _num_bytes: int, _advice: int) -> int:
        ctypes.set_errno(code)
        return -1

    return madvise
