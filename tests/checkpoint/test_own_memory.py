"""Memory for chunks begins with a page, is in large pages where it can be, and takes nothing that is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.arena_memory import LARGE_BYTES
from behemoth.checkpoint.own_memory import own_memory

PAGE_BYTES = 4096


def mappings_of(view: memoryview) -> list[dict[str, str]]:
    """What the kernel says of the mappings in which the view lies; `access` is that of the head line."""
    begin, is_ours = address_of(view), False
    found: list[dict[str, str]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, rest = line.split(maxsplit=1)
        if not first.endswith(":"):
            start, stop = (int(one, 16) for one in first.split("-"))
            is_ours = start < begin + view.nbytes and stop > begin
            if is_ours:
                found.append({"access": rest.split()[0]})
        elif is_ours:
            found[-1][first[:-1]] = rest
    return found


@pytest.mark.parametrize("num_bytes", [1, PAGE_BYTES, LARGE_BYTES, LARGE_BYTES + 4, 4 * LARGE_BYTES + 4])
def test_it_begins_with_a_page_and_is_as_long_as_asked_and_writable(num_bytes: int) -> None:
    view = own_memory(num_bytes)
    assert (address_of(view) % PAGE_BYTES, view.nbytes, view.readonly) == (0, num_bytes, False)
    view[-1] = 7
    assert view[-1] == 7


def test_large_pages_are_asked_for_where_a_whole_one_is_wanted_and_not_for_the_tail() -> None:
    view = own_memory(2 * LARGE_BYTES + 4)
    view[-1] = 1
    large = [one for one in mappings_of(view) if "hg" in one.get("VmFlags", "").split()]
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert [one["access"] for one in large] == ["rw-p"]
    assert large[0]["Size"].split() == [str(2 * LARGE_BYTES >> 10), "kB"]
    assert large[0]["Rss"].split() == ["0", "kB"]
