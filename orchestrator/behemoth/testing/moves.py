"""What every store that moves objects must do, as a suite to inherit from. The neighbour is `ranges`, for the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest

from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.ports import MovesObjects, ObjectInfo, Part


class MoveContract(ABC):
    """Inherit, name the class Test..., implement `store` (a fixture: an empty WritesRanges that moves objects)."""

    @pytest.fixture
    @abstractmethod
    def store(self) -> Any:
        """An empty store; closed afterwards if it needs closing."""

    def test_it_says_that_it_can(self, store: Any) -> None:
        assert isinstance(store, MovesObjects)

    def test_a_moved_object_has_its_bytes_and_one_name(self, store: Any) -> None:
        _sealed(store, "aside/a", b"whole")
        store.move("aside/a", "b/c")
        assert list(store.list("")) == [ObjectInfo(key="b/c", size_bytes=5)]
        data = bytearray(5)
        store.read_into("b/c", offset_bytes=0, into=data)
        assert data == b"whole"

    def test_a_name_that_is_taken_is_not_replaced(self, store: Any) -> None:
        _sealed(store, "a", b"new")
        store.create("b", b"old")
        with pytest.raises(Conflict, match="b: expected no such object"):
            store.move("a", "b")
        data = bytearray(3)
        store.read_into("b", offset_bytes=0, into=data)
        assert data == b"old"
        assert [info.key for info in store.list("")] == ["a", "b"]

    def test_what_is_missing_is_not_found_and_makes_nothing(self, store: Any) -> None:
        with pytest.raises(NotFound):
            store.move("a", "b/c")
        assert list(store.list("")) == []

    def test_both_names_must_be_keys(self, store: Any) -> None:
        _sealed(store, "a", b"x")
        for source, target in (("../a", "b"), ("a", "../b")):
            with pytest.raises(Invalid):
                store.move(source, target)

    def test_the_old_name_can_be_written_again(self, store: Any) -> None:
        _sealed(store, "a", b"first")
        store.move("a", "b")
        _sealed(store, "a", b"then")
        data = bytearray(5)
        store.read_into("b", offset_bytes=0, into=data)
        assert data == b"first"


def _sealed(store: Any, key: str, data: bytes) -> None:
    store.write_parts(key, size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])
    store.seal([key])
