"""What every store that many writers fill at known offsets must do, as a suite to inherit from. Built on `objects`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.ports import ObjectInfo, Part, WritesRanges
from behemoth.testing.objects import BAD_KEYS, ObjectContract
from behemoth.testing.store import read


class RangeContract(ObjectContract):
    """As its base; the store is a WritesRanges."""

    def test_it_says_that_it_can(self, store: Any) -> None:
        assert isinstance(store, WritesRanges)

    def test_an_empty_object_may_be_written_and_sealed(self, store: WritesRanges) -> None:
        store.write_parts("a/empty", size_bytes=0, parts=[])
        store.seal(["a/empty"])
        assert list(store.list("a")) == [ObjectInfo(key="a/empty", size_bytes=0)]

    def test_a_written_buffer_may_have_any_shape_and_type(self, store: WritesRanges) -> None:
        array: Any = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        empty: Any = np.zeros((3, 0), np.int64)
        store.write_parts("a", size_bytes=array.nbytes, parts=[Part(offset_bytes=0, buffers=[empty, array, empty])])
        assert read(store, "a", array.nbytes) == array.tobytes()

    def test_a_strided_part_is_refused(self, store: WritesRanges) -> None:
        strided: Any = np.zeros((4, 4), np.uint8)[:, 1]
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.write_parts("a", size_bytes=4, parts=[Part(offset_bytes=0, buffers=[strided])])

    def test_parts_land_at_their_offsets_and_gaps_are_zero(self, store: WritesRanges) -> None:
        parts = [
            Part(offset_bytes=4, buffers=[b"ab", bytearray(b"cd")]),
            Part(offset_bytes=0, buffers=[memoryview(b"xy")]),
        ]
        store.write_parts("a/b", size_bytes=10, parts=parts)
        assert read(store, "a/b", 10) == b"xy\0\0abcd\0\0"

    def test_an_object_has_its_final_size_from_the_first_write(self, store: WritesRanges) -> None:
        store.write_parts("a", size_bytes=12345, parts=[])
        assert list(store.list("")) == [ObjectInfo(key="a", size_bytes=12345)]

    def test_thousands_of_small_buffers_are_one_write(self, store: WritesRanges) -> None:
        data: Any = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)
        part = Part(offset_bytes=3, buffers=[data[at : at + 1] for at in range(data.size)])
        store.write_parts("a", size_bytes=data.size + 3, parts=[part])
        assert read(store, "a", data.size + 3) == bytes(3) + data.tobytes()

    def test_writing_again_changes_only_what_is_written(self, store: WritesRanges) -> None:
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=0, buffers=[b"abcdef"])])
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=2, buffers=[b"CD"])])
        store.seal(["a"])
        store.write_parts("a", size_bytes=6, parts=[Part(offset_bytes=2, buffers=[b"CD"])])
        assert read(store, "a", 6) == b"abCDef"

    def test_two_handles_fill_one_object(self, store: WritesRanges) -> None:
        other = self.reopened(store)
        for piece in range(0, 100, 2):
            store.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=3 * piece, buffers=[b"one"])])
            other.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=3 * piece + 3, buffers=[b"two"])])
        other.seal(["a"])
        store.seal(["a"])
        assert read(store, "a", 300) == read(other, "a", 300) == b"onetwo" * 50

    def test_threads_fill_one_object(self, store: WritesRanges) -> None:
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

    def test_another_size_than_the_objects_is_a_conflict(self, store: WritesRanges) -> None:
        store.write_parts("a", size_bytes=6, parts=[])
        with pytest.raises(Conflict, match=r"expected an object of 7 bytes, got one of 6 bytes"):
            store.write_parts("a", size_bytes=7, parts=[])

    @pytest.mark.parametrize(("offset_bytes", "data"), [(-1, b"a"), (4, b"ab"), (5, b"a"), (99, b"")])
    def test_bytes_outside_of_the_object_are_refused(self, store: WritesRanges, offset_bytes: int, data: bytes) -> None:
        with pytest.raises(Invalid, match=r"expected bytes within \[0, 5\)"):
            store.write_parts("a", size_bytes=5, parts=[Part(offset_bytes=offset_bytes, buffers=[data])])

    def test_sealing_what_is_missing_is_not_found(self, store: WritesRanges) -> None:
        with pytest.raises(NotFound, match="seal a/b"):
            store.seal(["a/b"])
        assert list(store.list("")) == []

    def test_sealing_twice_or_by_another_handle_is_fine(self, store: WritesRanges) -> None:
        store.write_parts("a/b/c", size_bytes=1, parts=[Part(offset_bytes=0, buffers=[b"x"])])
        store.seal(["a/b/c"])
        self.reopened(store).seal(["a/b/c", "a/b/c"])
        assert read(store, "a/b/c", 1) == b"x"

    def test_unsealed_objects_are_listed(self, store: WritesRanges) -> None:
        store.write_parts("a/b", size_bytes=5, parts=[])
        assert [info.key for info in self.reopened(store).list("a")] == ["a/b"]

    def test_what_was_deleted_can_be_written_again(self, store: WritesRanges) -> None:
        other = self.reopened(store)
        for handle, size_bytes in ((store, 5), (other, 7), (store, 9)):
            part = Part(offset_bytes=1, buffers=[b"abc"])
            store.write_parts("a/b/c", size_bytes=size_bytes, parts=[part])
            assert read(other, "a/b/c", size_bytes) == b"\0abc" + bytes(size_bytes - 4)
            handle.delete(["a/b/c"])
            store.create("a", b"a file where a folder was")
            handle.delete(["a"])

    def test_an_object_and_a_folder_of_one_name_are_a_conflict(self, store: WritesRanges) -> None:
        store.create("a/b", b"x")
        part = Part(offset_bytes=0, buffers=[b"y"])
        for clash in ("a", "a/b/c"):
            with pytest.raises(Conflict):
                store.write_parts(clash, size_bytes=1, parts=[part])
            with pytest.raises(Conflict):
                store.create(clash, b"y")
        assert [info.key for info in store.list("")] == ["a/b"]

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_that_is_no_plain_relative_path_is_not_written(self, store: WritesRanges, key: str) -> None:
        with pytest.raises(Invalid, match="store key"):
            store.write_parts(key, size_bytes=1, parts=[])
        with pytest.raises(Invalid, match="store key"):
            store.seal([key])
