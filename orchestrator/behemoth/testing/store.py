"""What every ObjectStore must do, as a suite to inherit from, and the store in memory that passes it.

An adapter's tests subclass `StoreContract` and give it `store` and `reopened`; a fake that passes the same suite may
then stand for it anywhere. Must not test what the port does not promise. The neighbour `faults` breaks stores.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.ports import ObjectInfo, ObjectStore, Part
from behemoth.storage.keys import segments_of, segments_of_prefix
from behemoth.storage.positional import byte_view, runs_of


class MemoryStore:
    """Objects in a dictionary. `after_power_loss` gives what a disk may hold when unsealed bytes are gone."""

    def __init__(self) -> None:
        self._objects: dict[str, bytearray] = {}
        self._unsealed: set[str] = set()
        self._lock = threading.Lock()

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        segments_of(key)
        runs = runs_of(key, size_bytes, parts)
        with self._lock:
            self._refuse_folder_clash(key)
            data = self._objects.setdefault(key, bytearray(size_bytes))
            if len(data) != size_bytes:
                raise Conflict(f"write {key}: expected an object of {size_bytes} bytes, got one of {len(data)} bytes")
            self._unsealed.add(key)
            for offset_bytes, views in runs:
                joined = b"".join(views)
                data[offset_bytes : offset_bytes + len(joined)] = joined

    def seal(self, keys: Sequence[str]) -> None:
        for key in keys:
            segments_of(key)
            with self._lock:
                if key not in self._objects:
                    raise NotFound(f"seal {key}: no such object")
                self._unsealed.discard(key)

    def create(self, key: str, data: Buffer) -> None:
        segments_of(key)
        view = byte_view(data, f"create {key}")
        with self._lock:
            self._refuse_folder_clash(key)
            if key in self._objects:
                raise Conflict(f"create {key}: expected no such object, got one", code="exists")
            self._objects[key] = bytearray(view)

    def read_into(self, key: str, *, offset_bytes: int, into: Buffer) -> None:
        segments_of(key)
        view = byte_view(into, f"read {key}")
        if view.readonly or offset_bytes < 0:
            raise Invalid(f"read {key}: expected a writable buffer and an offset >= 0, got offset {offset_bytes} bytes")
        with self._lock:
            data = self._objects.get(key)
            if data is None:
                raise NotFound(f"read {key}: no such object")
            if offset_bytes + view.nbytes > len(data) and view.nbytes:
                expected = f"at least {offset_bytes + view.nbytes} bytes"
                raise Corrupt(f"read {key}: expected {expected}, got {len(data)} bytes", code="truncated")
            view[:] = memoryview(data)[offset_bytes : offset_bytes + view.nbytes]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start = "".join(f"{segment}/" for segment in segments_of_prefix(prefix))
        with self._lock:
            found = sorted((key, len(data)) for key, data in self._objects.items() if key.startswith(start))
        yield from (ObjectInfo(key=key, size_bytes=size_bytes) for key, size_bytes in found)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            segments_of(key)
            with self._lock:
                self._objects.pop(key, None)
                self._unsealed.discard(key)

    def move(self, source: str, target: str) -> None:
        segments_of(source)
        segments_of(target)
        with self._lock:
            self._refuse_folder_clash(target)
            if source not in self._objects:
                raise NotFound(f"move {source}: no such object")
            if target in self._objects:
                raise Conflict(f"move to {target}: expected no such object, got one", code="exists")
            self._objects[target] = self._objects.pop(source)
            if source in self._unsealed:
                self._unsealed.remove(source)
                self._unsealed.add(target)

    def copy(self) -> MemoryStore:
        """A store of its own with the same objects, as a process that was killed leaves them."""
        after = MemoryStore()
        with self._lock:
            after._objects = {key: data[:] for key, data in self._objects.items()}
            after._unsealed = set(self._unsealed)
        return after

    def after_power_loss(self, *, seed: int) -> MemoryStore:
        """A new store as a power cut could leave it: each unsealed object is gone, zero, cut to half of its bytes, or
        whole, by a generator with this seed."""
        random = np.random.default_rng(seed)
        after = MemoryStore()
        with self._lock:
            for key, data in sorted(self._objects.items()):
                kept = data[:] if key not in self._unsealed else _torn(data, int(random.integers(4)))
                if kept is not None:
                    after._objects[key] = kept
        return after

    def _refuse_folder_clash(self, key: str) -> None:
        """A directory cannot hold `a` and `a/b` both; so the stand-in does not either."""
        segments = key.split("/")
        above = {"/".join(segments[:depth]) for depth in range(1, len(segments))}
        if above & self._objects.keys() or any(other.startswith(f"{key}/") for other in self._objects):
            raise Conflict(f"write {key}: an object and a folder claim the same name")


def _torn(data: bytearray, fate: int) -> bytearray | None:
    match fate:
        case 0:
            return None
        case 1:
            return bytearray(len(data))
        case 2:
            return data[: len(data) // 2] + bytearray(len(data) - len(data) // 2)
        case _:
            return data[:]


class StoreContract(ABC):
    """Inherit, name the class Test..., implement `store` (a fixture: an empty store) and `reopened`."""

    @pytest.fixture
    @abstractmethod
    def store(self) -> Any:
        """An empty ObjectStore; closed afterwards if it needs closing."""

    @abstractmethod
    def reopened(self, store: ObjectStore) -> ObjectStore:
        """Another handle to the same objects, as a second process would have."""

    def test_parts_land_at_their_offsets_and_gaps_are_zero(self, store: ObjectStore) -> None:
        parts = [
            Part(offset_bytes=4, buffers=[b"ab", bytearray(b"cd")]),
            Part(offset_bytes=0, buffers=[memoryview(b"xy")]),
        ]
        store.write_parts("a/b", size_bytes=10, parts=parts)
        assert read(store, "a/b", 10) == b"xy\0\0abcd\0\0"

    def test_an_object_has_its_final_size_from_the_first_write(self, store: ObjectStore) -> None:
        store.write_parts("a", size_bytes=12345, parts=[])
        assert list(store.list("")) == [ObjectInfo(key="a", size_bytes=12345)]

    def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        store.write_parts("a/empty", size_bytes=0, parts=[])
        store.create("a/void", b"")
        store.seal(["a/empty"])
        found = [ObjectInfo(key="a/empty", size_bytes=0), ObjectInfo(key="a/void", size_bytes=0)]
        assert list(store.list("a")) == found

    def test_a_buffer_may_have_any_shape_and_type(self, store: ObjectStore) -> None:
        array: Any = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        empty: Any = np.zeros((3, 0), np.int64)
        parts = [Part(offset_bytes=0, buffers=[empty, array, empty])]
        store.write_parts("a", size_bytes=array.nbytes, parts=parts)
        into: Any = np.zeros((4, 6), np.float32)
        store.read_into("a", offset_bytes=0, into=into)
        assert into.tobytes() == array.tobytes()

    def test_thousands_of_small_buffers_are_one_write(self, store: ObjectStore) -> None:
        data: Any = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)
        part = Part(offset_bytes=3, buffers=[data[at : at + 1] for at in range(data.size)])
        store.write_parts("a", size_bytes=data.size + 3, parts=[part])
        assert read(store, "a", data.size + 3) == bytes(3) + data.tobytes()

    def test_writing_again_changes_only_what_is_written(self, store: ObjectStore) -> None:
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=0, buffers=[b"abcdef"])])
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=2, buffers=[b"CD"])])
        store.seal(["a"])
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=2, buffers=[b"CD"])])
        assert read(store, "a", 6) == b"abCDef"

    def test_two_handles_fill_one_object(self, store: ObjectStore) -> None:
        other = self.reopened(store)
        for piece in range(0, 100, 2):
            store.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=3 * piece, buffers=[b"one"])])
            other.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=3 * piece + 3, buffers=[b"two"])])
        other.seal(["a"])
        store.seal(["a"])
        assert read(store, "a", 300) == read(other, "a", 300) == b"onetwo" * 50

    def test_threads_fill_one_object(self, store: ObjectStore) -> None:
        data: Any = np.random.default_rng(2).integers(0, 256, 64_000, dtype=np.uint8)

        def fill(number: int) -> None:
            for at in range(1000 * number, data.size, 8000):
                part = Part(offset_bytes=at, buffers=[data[at : at + 1000]])
                store.write_parts("a", size_bytes=data.size, parts=[part])

        threads = [threading.Thread(target=fill, args=(number,), name=f"fill-{number}") for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert read(store, "a", data.size) == data.tobytes()

    def test_another_size_than_the_objects_is_a_conflict(self, store: ObjectStore) -> None:
        store.write_parts("a", size_bytes=6, parts=[])
        with pytest.raises(Conflict, match=r"expected an object of 7 bytes, got one of 6 bytes"):
            store.write_parts("a", size_bytes=7, parts=[])

    @pytest.mark.parametrize(("offset_bytes", "data"), [(-1, b"a"), (4, b"ab"), (5, b"a"), (99, b"")])
    def test_bytes_outside_of_the_object_are_refused(self, store: ObjectStore, offset_bytes: int, data: bytes) -> None:
        with pytest.raises(Invalid, match=r"expected bytes within \[0, 5\)"):
            store.write_parts("a", size_bytes=5, parts=[Part(offset_bytes=offset_bytes, buffers=[data])])

    def test_a_strided_buffer_is_refused(self, store: ObjectStore) -> None:
        strided: Any = np.zeros((4, 4), np.uint8)[:, 1]
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.write_parts("a", size_bytes=4, parts=[Part(offset_bytes=0, buffers=[strided])])
        store.create("a", b"1234")
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.read_into("a", offset_bytes=0, into=strided)

    def test_sealing_what_is_missing_is_not_found(self, store: ObjectStore) -> None:
        with pytest.raises(NotFound, match="seal a/b"):
            store.seal(["a/b"])
        assert list(store.list("")) == []

    def test_sealing_twice_or_by_another_handle_is_fine(self, store: ObjectStore) -> None:
        store.write_parts("a/b/c", size_bytes=1, parts=[Part(offset_bytes=0, buffers=[b"x"])])
        store.seal(["a/b/c"])
        self.reopened(store).seal(["a/b/c", "a/b/c"])
        assert read(store, "a/b/c", 1) == b"x"

    def test_create_makes_an_object_whole(self, store: ObjectStore) -> None:
        store.create("commits/000000001.json", b'{"step": 1}')
        assert read(self.reopened(store), "commits/000000001.json", 11) == b'{"step": 1}'

    def test_create_never_replaces(self, store: ObjectStore) -> None:
        store.create("a/b", b"first")
        with pytest.raises(Conflict, match="create a/b: expected no such object, got one") as caught:
            self.reopened(store).create("a/b", b"second")
        assert caught.value.code == "exists"
        assert read(store, "a/b", 5) == b"first"

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

    def test_ranges_are_read_into_the_callers_buffer(self, store: ObjectStore) -> None:
        store.create("a", b"0123456789")
        into = bytearray(b"........")
        store.read_into("a", offset_bytes=3, into=memoryview(into)[2:6])
        assert into == b"..3456.."

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

    def test_unsealed_objects_are_listed(self, store: ObjectStore) -> None:
        store.write_parts("a/b", size_bytes=5, parts=[])
        assert [info.key for info in self.reopened(store).list("a")] == ["a/b"]

    def test_deleting_removes_and_missing_ones_are_fine(self, store: ObjectStore) -> None:
        store.create("a/b", b"x")
        store.create("a/c", b"x")
        store.delete(["a/b", "a/b", "nothing/here", "a/c/below"])
        assert [info.key for info in store.list("")] == ["a/c"]
        with pytest.raises(NotFound):
            store.read_into("a/b", offset_bytes=0, into=bytearray(1))

    def test_what_was_deleted_can_be_written_again(self, store: ObjectStore) -> None:
        other = self.reopened(store)
        for handle, size_bytes in ((store, 5), (other, 7), (store, 9)):
            part = Part(offset_bytes=1, buffers=[b"abc"])
            store.write_parts("a/b/c", size_bytes=size_bytes, parts=[part])
            assert read(other, "a/b/c", size_bytes) == b"\0abc" + bytes(size_bytes - 4)
            handle.delete(["a/b/c"])
            store.create("a", b"a file where a folder was")
            handle.delete(["a"])

    def test_an_object_and_a_folder_of_one_name_are_a_conflict(self, store: ObjectStore) -> None:
        store.create("a/b", b"x")
        part = Part(offset_bytes=0, buffers=[b"y"])
        for clash in ("a", "a/b/c"):
            with pytest.raises(Conflict):
                store.write_parts(clash, size_bytes=1, parts=[part])
            with pytest.raises(Conflict):
                store.create(clash, b"y")
        assert [info.key for info in store.list("")] == ["a/b"]

    @pytest.mark.parametrize(
        "key", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/./b", "a\0b", "x" * 256, "a/" * 600 + "a"]
    )
    def test_a_key_that_is_no_plain_relative_path_is_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(Invalid, match="store key"):
            store.write_parts(key, size_bytes=1, parts=[])
        with pytest.raises(Invalid, match="store key"):
            store.create(key, b"")
        with pytest.raises(Invalid, match="store key"):
            store.read_into(key, offset_bytes=0, into=bytearray(1))
        with pytest.raises(Invalid, match="store key"):
            store.delete([key])
        with pytest.raises(Invalid, match="store key"):
            store.seal([key])


def read(store: ObjectStore, key: str, num_bytes: int) -> bytes:
    """The first `num_bytes` of an object."""
    into = bytearray(num_bytes)
    store.read_into(key, offset_bytes=0, into=into)
    return bytes(into)
