"""CRC-32C (Castagnoli) of buffers, and of a concatenation from the CRCs of its pieces.

Why its own module: the pieces of one chunk lie on different ranks, and nobody shall read them all to learn the CRC of
the chunk that they form. It must not do any I/O. The neighbours are `writer`, which computes, and `commit`, which
combines.
"""

from __future__ import annotations

from functools import lru_cache

import crc32c as _crc32c
from typing_extensions import Buffer

TRAILER_BYTES = 4
"""Size of the little-endian CRC that zarr v3's `crc32c` codec appends to a chunk or an index."""

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed: RFC 3720, section 12.1
_ONE = 1 << 31  # the polynomial 1: reflected, so the highest bit holds x^0
_X = 1 << 30


def crc32c(buffer: Buffer, value: int = 0) -> int:
    """CRC-32C of a C-contiguous buffer; `value` is the CRC of the bytes before it (0: none).

    About 13 GB/s per core with SSE 4.2. The package `crc32c` releases the GIL for buffers of at least 32 KiB
    (its default, `gil_release_mode=-1`) and keeps it below, where the handover costs more than the work.
    Raises ValueError for a strided buffer.
    """
    return int(_crc32c.crc32c(buffer, value))


def combine(crc_a: int, crc_b: int, len_b: int) -> int:
    """CRC-32C of `a + b` from the CRCs of `a` and of `b`; `len_b` is the number of bytes of `b`.

    crc(a + b) = crc(a) * x^(8 len_b) + crc(b) over GF(2) modulo the polynomial: initial and final inversion cancel.
    Source: M. Adler, zlib 1.2.12, `crc32.c`, functions `multmodp`, `x2nmodp` and `crc32_combine_`. About 5 us when the
    length was seen before, 80 us otherwise. Raises ValueError for a negative length.
    """
    if len_b < 0:
        raise ValueError(f"crc32c combine: expected a length >= 0 bytes, got {len_b}")
    return _multiply(_power_of_x(len_b), crc_a) ^ crc_b


def trailer(crc: int) -> bytes:
    """The four bytes that follow a chunk's payload on disk (zarr v3 specification, codec `crc32c`)."""
    return crc.to_bytes(TRAILER_BYTES, "little")


def _multiply(a: int, b: int) -> int:
    """a * b modulo the polynomial, both reflected (zlib's multmodp)."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _squares() -> tuple[int, ...]:
    """x^(8 * 2^n) for n = 0 .. 63: enough for any 64-bit number of bytes."""
    power = _X
    for _ in range(3):
        power = _multiply(power, power)
    powers = [power]
    for _ in range(63):
        powers.append(_multiply(powers[-1], powers[-1]))
    return tuple(powers)


_X_TO_8_TIMES_2_TO = _squares()


@lru_cache(maxsize=1 << 14)
def _power_of_x(num_bytes: int) -> int:
    """x^(8 num_bytes) modulo the polynomial. Cached: a plan has few different piece lengths."""
    power = _ONE
    for bit, square in enumerate(_X_TO_8_TIMES_2_TO):
        if num_bytes >> bit & 1:
            power = _multiply(power, square)
    return power
