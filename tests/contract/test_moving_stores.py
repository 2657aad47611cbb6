"""Every store that moves objects under the one contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.ports import ObjectStore
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import FaultyStore
from behemoth.testing.moves import MoveContract
from behemoth.testing.store import MemoryStore


class TestMemoryStore(MoveContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestLocalStore(MoveContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ObjectStore]:
        store = LocalStore(tmp_path / "root")
        yield store
        store.close()


class TestFaultyStoreWithoutFaults(MoveContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return FaultyStore(MemoryStore())
