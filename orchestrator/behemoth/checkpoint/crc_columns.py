"""CRC-32C of many wholes from those of their pieces, as columns: a save of 32,000 ranks has 17.6 million pieces.

The library's `combine` takes a microsecond for each, since it works out anew by which power of x a piece has to be
multiplied. There are few such powers, and multiplying is linear in the bits of a CRC, so here both are looked up: 256
multiples of 1, 256, 65536 .. bytes, and for each what every byte of a CRC becomes. Pure. Neighbour: `crc`, one by one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.crc import combine

Crcs = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

_BLOCK_ROWS = 1 << 15
"""What is computed between stays in a core's cache, and so does a table, of 1 MiB."""


def combined_runs(crcs: Crcs, lengths: Ints, first: Ints) -> Crcs:
    """The CRC of each whole. Pieces lie one behind the other, the CRC and the number of bytes of each; `first` has the
    first row of each whole, none of them empty, and the end of the last one's."""
    if len(first) < 2:
        return np.zeros(0, dtype=np.uint32)
    ends = np.cumsum(lengths)
    behind = np.repeat(ends[first[1:] - 1], np.diff(first)) - ends
    found: Crcs = np.bitwise_xor.reduceat(followed(crcs, behind), first[:-1])
    return found


def followed(crcs: Crcs, num_bytes: Ints) -> Crcs:
    """What a piece adds to the CRC of a whole in which `num_bytes` come behind it: `combine(crc, 0, num_bytes)`."""
    found = np.empty(len(crcs), dtype=np.uint32)
    for at in range(0, len(crcs), _BLOCK_ROWS):
        block = slice(at, at + _BLOCK_ROWS)
        found[block] = _followed(crcs[block], num_bytes[block])
    return found


def _followed(crcs: Crcs, num_bytes: Ints) -> Crcs:
    """Places in tables have 16 bits, of which more stay in the cache than of 64. "clip": none lies outside, and numpy
    need not look."""
    for digit in range(-(-int(num_bytes.max()).bit_length() // 8)):
        tables = _tables(digit)
        values = (num_bytes >> (8 * digit)).astype(np.uint8).astype(np.uint16) << 8
        places = crcs.astype("<u4").view(np.uint8).reshape(-1, 4)
        crcs = tables[0].take(values | places[:, 0], mode="clip")
        for place in range(1, 4):
            crcs ^= tables[place].take(values | places[:, place], mode="clip")
    return crcs


@lru_cache(maxsize=8)
def _tables(digit: int) -> Crcs:
    """[4, 256 * 256]: of each of four places of a CRC, what a byte there becomes with value * 256 ** digit bytes behind
    it, at place value * 256 + byte."""
    of_bits = np.array(
        [[combine(1 << bit, 0, value << (8 * digit)) for bit in range(32)] for value in range(256)], dtype=np.uint32
    )
    tables = np.zeros((4, 256, 256), dtype=np.uint32)
    for bit in range(32):
        place, low = bit // 8, 1 << bit % 8
        tables[place, :, low : 2 * low] = tables[place, :, :low] ^ of_bits[:, bit, None]
    return tables.reshape(4, -1)
