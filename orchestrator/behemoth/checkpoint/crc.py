"""CRC-32C (Castagnoli) of buffers, and of a concatenation from the CRCs of its pieces.

Why its own module: the pieces of one chunk lie on different ranks, and the CRC of the chunk has to follow from the CRCs
of its pieces, without any rank reading them all. It must not do any I/O. The neighbours are `writer`, which computes,
and `proof`, `end_writer` and `shard_proof`, which combine; `crc_columns` combines millions.
"""

from __future__ import annotations

from collections.abc import Iterable

from awscrt import checksums
from typing_extensions import Buffer

TRAILER_BYTES = 4
"""Size of the little-endian CRC that zarr v3's `crc32c` codec appends to a chunk or an index."""


def crc32c(buffer: Buffer, value: int = 0) -> int:
    """CRC-32C of a C-contiguous buffer; `value` is the CRC of the bytes before it (0: none).

    About 24 GB/s per core with AVX-512, without the GIL for large buffers; the package `crc32c` did 17, `google-crc32c`
    keeps the GIL. Raises ValueError or BufferError for a strided buffer.
    """
    return int(checksums.crc32c(buffer, value))


def crc_of(buffers: Iterable[Buffer]) -> int:
    """CRC-32C of the concatenation of some buffers."""
    crc = 0
    for buffer in buffers:
        crc = crc32c(buffer, crc)
    return crc


def combine(crc_a: int, crc_b: int, len_b: int) -> int:
    """CRC-32C of `a + b` from the CRCs of `a` and of `b`; `len_b` is the number of bytes of `b`. About 1 us.

    Raises ValueError for a negative length.
    """
    return int(checksums.combine_crc32c(crc_a, crc_b, len_b))


def combined(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC-32C of a whole from its pieces in order: the CRC and the number of bytes of each."""
    total = 0
    for crc, num_bytes in pieces:
        total = combine(total, crc, num_bytes)
    return total


def trailer(crc: int) -> bytes:
    """The four bytes that follow a chunk's payload on disk (zarr v3 specification, codec `crc32c`)."""
    return crc.to_bytes(TRAILER_BYTES, "little")
