"""CRC-32C against published vectors and against itself over splits."""

import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.crc import combine, combined, crc32c, crc_of, trailer


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of CRC-32C
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors_are_met(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_the_crc_of_a_concatenation_follows_from_the_crcs_of_its_pieces(pieces: list[bytes]) -> None:
    whole = 0
    for piece in pieces:
        whole = combine(whole, crc32c(piece), len(piece))
    assert whole == crc32c(b"".join(pieces))


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_buffers_behind_each_other_have_the_crc_of_their_concatenation(buffers: list[bytes]) -> None:
    assert crc_of(buffers) == crc32c(b"".join(buffers))


@given(st.lists(st.binary(max_size=50), max_size=12))
def test_the_crc_of_a_whole_follows_from_those_of_its_pieces(pieces: list[bytes]) -> None:
    assert combined((crc32c(piece), len(piece)) for piece in pieces) == crc32c(b"".join(pieces))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_going_on_from_a_value_equals_combining(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == combine(crc32c(first), crc32c(second), len(second))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**50), st.integers(0, 2**50))
def test_appending_zeros_in_two_steps_equals_one_step_at_lengths_no_memory_holds(crc: int, a: int, b: int) -> None:
    assert combine(combine(crc, 0, a), 0, b) == combine(crc, 0, a + b)


def test_every_single_flipped_bit_of_a_page_changes_the_crc() -> None:
    page = np.random.default_rng(7).integers(0, 256, 512, dtype=np.uint8)
    intact = crc32c(page.data)
    for bit in range(page.size * 8):
        page[bit // 8] ^= 1 << bit % 8
        assert crc32c(page.data) != intact
        page[bit // 8] ^= 1 << bit % 8


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not a valid unsigned"):
        combine(1, 2, -1)


def test_a_strided_buffer_is_refused_rather_than_read_wrongly() -> None:
    strided: tuple[Any, ...] = (np.zeros((4, 4), np.uint8)[:, 1], memoryview(bytes(16))[::4])
    for buffer in strided:
        with pytest.raises((ValueError, BufferError), match=r"contiguous|array"):
            crc32c(buffer)


def test_the_trailer_is_little_endian() -> None:
    assert trailer(0x01020304) == b"\x04\x03\x02\x01"


def test_other_threads_run_while_large_buffers_are_summed() -> None:
    buffer = np.zeros(64 << 20, np.uint8)
    main_ran: list[bool] = []
    seen: list[bool] = []

    def sum_until_main_ran() -> None:
        for _ in range(400):
            crc32c(buffer.data)
            if main_ran:
                seen.append(True)
                return

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that only a release of the GIL lets another thread run
    try:
        summing = threading.Thread(target=sum_until_main_ran, name="sum-buffers")
        summing.start()
        main_ran.append(True)
        summing.join(60)
    finally:
        sys.setswitchinterval(interval_s)
    assert seen == [True]
