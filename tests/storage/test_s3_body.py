"""Many buffers, read like one file."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.storage.s3_body import Body

BUFFERS = st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=4000, max_size=9000)), max_size=12)


def body(buffers: list[bytes]) -> Body:
    return Body([memoryview(buffer) for buffer in buffers], ends_s=1.0, now=lambda: 0.0)


@settings(max_examples=40)
@given(buffers=BUFFERS, sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=5))
def test_reads_of_any_size_give_the_concatenation(buffers: list[bytes], sizes: list[int]) -> None:
    whole, file = b"".join(buffers), body(buffers)
    assert len(file) == len(whole)
    got, number = [], 0
    while taken := file.read(sizes[number % len(sizes)]):
        assert len(taken) <= sizes[number % len(sizes)]
        got.append(bytes(taken))
        number += 1
    assert b"".join(got) == whole
    assert file.tell() == len(whole)


@settings(max_examples=40)
@given(buffers=BUFFERS, data=st.data())
def test_it_can_be_read_again_from_anywhere(buffers: list[bytes], data: st.DataObject) -> None:
    whole, file = b"".join(buffers), body(buffers)
    assert file.readable()
    assert file.seekable()
    file.read()
    at = data.draw(st.integers(0, len(whole)))
    assert file.seek(at) == at
    assert file.read() == whole[at:]
    assert file.seek(0) == 0
    assert file.seek(at, io.SEEK_CUR) == file.seek(0, io.SEEK_CUR) == file.tell() == at
    assert file.seek(-len(whole) - 1, io.SEEK_CUR) == 0
    assert file.seek(len(whole) + 1) == len(whole)
    assert file.seek(-at, io.SEEK_END) == len(whole) - at
    assert file.read() == whole[len(whole) - at :]


def test_large_buffers_are_not_copied_and_small_ones_are_gathered() -> None:
    large = bytearray(1 << 20)
    file = body([b"ab", b"cd", large, b"ef"])  # type: ignore[list-item]
    first = file.read(16 << 10)
    assert bytes(first[:4]) == b"abcd"
    assert len(first) == 4096
    second = file.read(16 << 10)
    assert len(second) == 16 << 10
    assert second.obj is large  # type: ignore[attr-defined]


@pytest.mark.parametrize("now_s", [0.0, 1.0])
def test_a_body_that_is_taken_in_time_is_given(now_s: float) -> None:
    file = Body([memoryview(b"abc")], ends_s=1.0, now=lambda: now_s)
    assert bytes(file.read(0)) == b""
    assert bytes(file.read(None)) == b"abc"
    assert bytes(file.read(1)) == b""


def test_a_body_that_is_taken_too_slowly_ends_the_request() -> None:
    file = Body([memoryview(b"abc")], ends_s=1.0, now=lambda: 1.5)
    with pytest.raises(TimeoutError):
        file.read(1)
