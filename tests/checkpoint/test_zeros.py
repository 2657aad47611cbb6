"""CRCs of zeros that nobody reads, and what they say about data."""

from __future__ import annotations

import numpy as np
import pytest

from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.zeros import crc_of_zeros, is_zero


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 65, 1000, 4097])
def test_the_crc_of_zeros_is_that_of_zeros(num_bytes: int) -> None:
    assert crc_of_zeros(num_bytes) == crc32c(bytes(num_bytes))


@pytest.mark.parametrize("num_bytes", [1, 64, 1000])
def test_one_set_bit_anywhere_is_not_zero(num_bytes: int) -> None:
    data = np.zeros(num_bytes, np.uint8)
    assert is_zero(data.data, crc32c(data.data))
    for at in (0, num_bytes // 2, num_bytes - 1):
        data[at] = 1
        assert not is_zero(data.data, crc32c(data.data))
        data[at] = 0


def test_neither_the_crc_nor_the_bytes_alone_make_zeros() -> None:
    """Other bytes may have the CRC of zeros, and a CRC may be of other bytes."""
    data = bytearray(32)
    assert not is_zero(data, crc32c(b"others"))
    data[7] = 1
    assert not is_zero(data, crc_of_zeros(32))


def test_arrays_of_any_dtype_are_looked_at_as_bytes() -> None:
    for array in (np.zeros((2, 3), np.float32), np.full((2, 3), -0.0, np.float32)):
        assert is_zero(array.data, crc32c(array.data)) == (array.tobytes() == bytes(24))
