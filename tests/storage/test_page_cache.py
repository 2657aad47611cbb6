"""What the kernel says about a file's pages in memory."""

import os
from pathlib import Path

import pytest

from behemoth.storage import page_cache
from behemoth.storage.page_cache import cached_bytes

BYTES = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(bytes(BYTES))
    return os.open(path, os.O_RDONLY)


def test_a_file_just_written_is_cached_and_only_the_range_counts(fd: int) -> None:
    try:
        if cached_bytes(fd, 0, BYTES) is None:
            pytest.skip("this kernel has no cachestat(2)")
        assert cached_bytes(fd, 0, BYTES) == BYTES
        assert cached_bytes(fd, BYTES // 2, BYTES // 4) == BYTES // 4
        assert cached_bytes(fd, BYTES, BYTES) == 0
    finally:
        os.close(fd)


def test_a_kernel_that_does_not_know_the_call_tells_nothing(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_CACHESTAT", 1 << 20)  # a number that no kernel uses
    try:
        assert cached_bytes(fd, 0, BYTES) is None
    finally:
        os.close(fd)
