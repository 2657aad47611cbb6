"""What every ObjectStore must do, as a suite to inherit from.

An adapter's tests subclass `ObjectContract`, or one of those built on it (`ranges`, `uploads`), and give it `store` and
`reopened`; a fake that passes the same suite may then stand for it anywhere. Must not test what the port does not
promise. The neighbour `store` has the fake of a directory, `bucket` that of S3.
"""

from __future__ import annotations

import mmap
import threading
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.ports import ObjectInfo, ObjectStore
from behemoth.testing.store import read

BAD_KEYS = ("", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/./b", "a\0b", "x" * 256, "a/" * 600 + "a")


class ObjectContract(ABC):
    """Inherit, name the class Test..., implement `store` (a fixture: an empty store) and `reopened`."""

    @pytest.fixture
    @abstractmethod
    def store(self) -> Any:
        """An empty store; closed afterwards if it needs closing."""

    @abstractmethod
    def reopened(self, store: Any) -> Any:
        """Another handle to the same objects, as a second process would have."""

    def test_create_makes_an_object_whole(self, store: ObjectStore) -> None:
        store.create("commits/000000001.json", b'{"step": 1}')
        assert read(self.reopened(store), "commits/000000001.json", 11) == b'{"step": 1}'

    def test_create_never_replaces(self, store: ObjectStore) -> None:
        store.create("a/b", b"first")
        with pytest.raises(Conflict, match="create a/b: expected no such object, got one") as caught:
            self.reopened(store).create("a/b", b"second")
        assert caught.value.code == "exists"
        assert read(store, "a/b", 5) == b"first"

    def test_what_is_as_it_was_is_replaced_whole(self, store: ObjectStore) -> None:
        store.create("commits/000000001.json", b'{"step": 1}')
        for _ in range(2):  # as a caller who was killed before it knew, and comes again
            self.reopened(store).replace("commits/000000001.json", old=b'{"step": 1}', new=b'{"step": 1, "a": 2}')
            assert read(store, "commits/000000001.json", 19) == b'{"step": 1, "a": 2}'
        assert [info.size_bytes for info in store.list("")] == [19]
        store.replace("commits/000000001.json", old=b'{"step": 1, "a": 2}', new=b"")
        assert [info.size_bytes for info in store.list("")] == [0]

    @pytest.mark.parametrize("other", [b"other", b"longer than both", b"s", b""])
    def test_what_is_not_as_it_was_is_not_replaced(self, store: ObjectStore, other: bytes) -> None:
        store.create("a/b", other)
        with pytest.raises(Conflict, match="replace a/b: expected the object as it was, got another") as caught:
            store.replace("a/b", old=b"first", new=b"second")
        assert caught.value.code == "changed"
        assert read(store, "a/b", len(other)) == other
        with pytest.raises(NotFound):
            store.replace("a/c", old=b"first", new=b"second")
        assert [info.key for info in store.list("")] == ["a/b"]

    def test_of_many_creators_exactly_one_wins(self, store: ObjectStore) -> None:
        winners: list[bytes] = []
        ready = threading.Barrier(8)

        def race(handle: ObjectStore, name: bytes) -> None:
            ready.wait(30)
            try:
                handle.create("a/b", name * 1000)
            except Conflict:
                return
            winners.append(name * 1000)

        names = [bytes([65 + number]) for number in range(8)]
        threads = [
            threading.Thread(target=race, args=(self.reopened(store), name), name=f"race-{name!r}") for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert winners == [read(store, "a/b", 1000)]

    def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        store.create("a/void", b"")
        assert list(store.list("a")) == [ObjectInfo(key="a/void", size_bytes=0)]

    def test_a_buffer_may_have_any_shape_and_type(self, store: ObjectStore) -> None:
        array: Any = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        store.create("a", array)
        into: Any = np.zeros((4, 6), np.float32)
        store.read_into("a", offset_bytes=0, into=into)
        assert into.tobytes() == array.tobytes()

    def test_a_strided_buffer_is_refused(self, store: ObjectStore) -> None:
        strided: Any = np.zeros((4, 4), np.uint8)[:, 1]
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.create("a", strided)
        store.create("a", b"1234")
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.read_into("a", offset_bytes=0, into=strided)

    def test_large_objects_are_read_whole_and_by_threads(self, store: ObjectStore) -> None:
        data: Any = np.random.default_rng(3).integers(0, 256, 20 << 20, dtype=np.uint8)
        store.create("large", data)
        into: Any = np.zeros_like(data)
        store.read_into("large", offset_bytes=0, into=into)
        assert np.array_equal(into, data)
        into[:] = 0
        pieces = [(at, into[at : at + (3 << 20)]) for at in range(0, data.size, 3 << 20)]
        threads = [
            threading.Thread(
                target=store.read_into, args=("large",), kwargs={"offset_bytes": at, "into": piece}, name=f"read-{at}"
            )
            for at, piece in pieces
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert np.array_equal(into, data)

    def test_ranges_are_read_into_the_callers_buffer(self, store: ObjectStore) -> None:
        store.create("a", b"0123456789")
        into = bytearray(b"........")
        store.read_into("a", offset_bytes=3, into=memoryview(into)[2:6])
        assert into == b"..3456.."

    @pytest.mark.parametrize("sizes", [(4, 3), (1, 0, 2), (0,), (0, 5)])
    def test_a_read_fills_several_buffers_one_behind_the_other(
        self, store: ObjectStore, sizes: tuple[int, ...]
    ) -> None:
        store.create("a", b"0123456789")
        into = tuple(bytearray(size) for size in sizes)
        store.read_into("a", offset_bytes=2, into=into)
        assert b"".join(into) == b"0123456789"[2 : 2 + sum(sizes)]

    @pytest.mark.parametrize("behind_bytes", [4, 4096, 5000])
    def test_a_large_buffer_and_a_small_one_behind_it_are_filled_at_once(
        self, store: ObjectStore, behind_bytes: int
    ) -> None:
        data: Any = np.random.default_rng(4).integers(0, 256, (9 << 20) + 7000, dtype=np.uint8)
        store.create("large", data)
        large, small = memoryview(mmap.mmap(-1, 8 << 20)), bytearray(behind_bytes)
        store.read_into("large", offset_bytes=4096, into=(large, small))
        assert bytes(large) + bytes(small) == data[4096 : 4096 + len(large) + behind_bytes].tobytes()
        with pytest.raises(Corrupt, match="read large: expected at least"):
            store.read_into("large", offset_bytes=8192 + (1 << 20), into=(large, small))

    def test_a_missing_object_is_not_found(self, store: ObjectStore) -> None:
        store.create("file", b"x")
        for key in ("a", "a/b", "file/below"):
            with pytest.raises(NotFound, match=f"read {key}"):
                store.read_into(key, offset_bytes=0, into=bytearray(1))

    @pytest.mark.parametrize(("offset_bytes", "length_bytes"), [(0, 11), (9, 2), (10, 1), (1000, 1)])
    def test_a_read_past_the_end_is_corrupt(self, store: ObjectStore, offset_bytes: int, length_bytes: int) -> None:
        store.create("a", b"0123456789")
        expected = f"read a: expected at least {offset_bytes + length_bytes} bytes, got 10 bytes"
        with pytest.raises(Corrupt, match=expected):
            store.read_into("a", offset_bytes=offset_bytes, into=bytearray(length_bytes))

    def test_a_read_only_buffer_or_a_negative_offset_is_refused(self, store: ObjectStore) -> None:
        store.create("a", b"0123456789")
        with pytest.raises(Invalid, match="expected a writable buffer and an offset >= 0"):
            store.read_into("a", offset_bytes=0, into=b"xx")
        with pytest.raises(Invalid, match="got offset -1 bytes"):
            store.read_into("a", offset_bytes=-1, into=bytearray(1))

    def test_listing_is_in_key_order_with_sizes(self, store: ObjectStore) -> None:
        keys = ["a", "b.x", "b/c", "b/c.d", "b/d/e", "b0", "ba", "é/ö", "z-", "z/y"]
        for key in reversed(keys):
            store.create(key, key.encode())
        assert [info.key for info in store.list("")] == sorted(keys)
        assert all(info.size_bytes == len(info.key.encode()) for info in store.list(""))

    def test_a_prefix_ends_at_a_segment(self, store: ObjectStore) -> None:
        for key in ("steps/1-a/x", "steps/1-ab/x", "steps/1"):
            store.create(key, b"")
        assert [info.key for info in store.list("steps/1-a")] == ["steps/1-a/x"]
        assert [info.key for info in store.list("steps/1-a/")] == ["steps/1-a/x"]
        assert list(store.list("steps/1")) == []
        assert list(store.list("missing")) == []

    def test_deleting_removes_and_missing_ones_are_fine(self, store: ObjectStore) -> None:
        store.create("a/b", b"x")
        store.create("a/c", b"x")
        store.delete(["a/b", "a/b", "nothing/here", "a/c/below"])
        assert [info.key for info in store.list("")] == ["a/c"]
        with pytest.raises(NotFound):
            store.read_into("a/b", offset_bytes=0, into=bytearray(1))

    def test_what_was_deleted_can_be_created_again(self, store: ObjectStore) -> None:
        for data in (b"first", b"second"):
            store.create("a/b", data)
            assert read(self.reopened(store), "a/b", len(data)) == data
            store.delete(["a/b"])

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_that_is_no_plain_relative_path_is_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(Invalid, match="store key"):
            store.create(key, b"")
        with pytest.raises(Invalid, match="store key"):
            store.replace(key, old=b"", new=b"")
        with pytest.raises(Invalid, match="store key"):
            store.read_into(key, offset_bytes=0, into=bytearray(1))
        with pytest.raises(Invalid, match="store key"):
            store.delete([key])
