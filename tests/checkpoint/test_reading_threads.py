"""More threads read what waits for a disk or a network, and no more than may compute what the page cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from behemoth.base.errors import NotFound
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.reading_threads import NUM_PROBES, THREADS_PER_READER, reading_threads
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, save

NUM_ARRAYS = 3 * NUM_PROBES
LAYOUT = Layout(
    mesh=Mesh(),
    arrays=tuple(ArraySpec(name=f"array{number:03}", dtype="uint8", shape=(3,)) for number in range(NUM_ARRAYS)),
)
THREADS = 3


class Files(LocalStore):
    """Of which the page cache holds as much as the test says."""

    share = 0.0
    asked: Sequence[tuple[str, int, int]] = ()

    def cached_share(self, ranges: Iterable[tuple[str, int, int]]) -> float:
        self.asked = list(ranges)
        super().cached_share(self.asked)
        return self.share


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def saved(store: LocalStore | MemoryStore) -> Commit:
    save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    newest = latest(store)
    assert newest is not None
    return open_commit(store, newest)


@pytest.mark.parametrize(("share", "factor"), [(0.0, THREADS_PER_READER), (0.89, THREADS_PER_READER), (0.9, 1)])
def test_files_are_read_by_more_threads_unless_the_page_cache_holds_them(
    files: Files, share: float, factor: int
) -> None:
    files.share = share
    assert reading_threads(files, saved(files), threads=THREADS) == factor * THREADS


def test_a_store_without_files_is_waited_for() -> None:
    store = MemoryStore()
    assert reading_threads(store, saved(store), threads=THREADS) == THREADS_PER_READER * THREADS


def test_chunks_are_asked_for_that_are_there_and_evenly_spread(files: Files) -> None:
    commit = saved(files)
    reading_threads(files, commit, threads=1)
    assert [key for key, _, _ in files.asked] == [commit.shard_key(array, 0) for array in range(0, NUM_ARRAYS, 3)]


def test_a_missing_file_is_left_to_who_reads_it(files: Files) -> None:
    commit = saved(files)
    files.delete(commit.shard_keys(0))
    with pytest.raises(NotFound):
        files.cached_share([(commit.shard_key(0, 0), 0, 1)])
    assert reading_threads(files, commit, threads=1) == THREADS_PER_READER
