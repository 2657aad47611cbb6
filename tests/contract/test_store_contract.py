"""Every store that ranges are written to under the one contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.ports import ObjectStore
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import FaultyStore
from behemoth.testing.ranges import RangeContract
from behemoth.testing.store import MemoryStore


class TestMemoryStore(RangeContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()

    def reopened(self, store: ObjectStore) -> ObjectStore:
        return store


class TestLocalStore(RangeContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ObjectStore]:
        self._root = tmp_path / "root"
        self._opened = [LocalStore(self._root)]
        yield self._opened[0]
        for store in self._opened:
            store.close()

    def reopened(self, store: ObjectStore) -> ObjectStore:
        assert store in self._opened
        self._opened.append(LocalStore(self._root, max_open_files=1))
        return self._opened[-1]


class TestFaultyStoreWithoutFaults(TestMemoryStore):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return FaultyStore(MemoryStore())
