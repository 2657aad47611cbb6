"""A store that counts what is read through it is a store, and counts what was asked for."""

from __future__ import annotations

import pytest

from behemoth.base.errors import NotFound
from behemoth.checkpoint.counting import CountingStore
from behemoth.ports import ObjectStore
from behemoth.testing.objects import ObjectContract
from behemoth.testing.store import MemoryStore


class TestCountingStore(ObjectContract):
    """It is a store like any other."""

    @pytest.fixture
    def store(self) -> ObjectStore:
        return CountingStore(MemoryStore())

    def reopened(self, store: ObjectStore) -> ObjectStore:
        return store


def test_bytes_count_once_for_each_read_that_succeeds() -> None:
    store = CountingStore(MemoryStore())
    store.create("a/b", b"0123456789")
    store.read_into("a/b", offset_bytes=0, into=bytearray(10))
    store.read_into("a/b", offset_bytes=4, into=bytearray(3))
    with pytest.raises(NotFound):
        store.read_into("a/c", offset_bytes=0, into=bytearray(5))
    assert store.read_bytes == 13
