"""The bytes behind a chunk's data in its object, and the CRC of a whole payload. Pure. Neighbours: `grid`, `zeros`."""

from __future__ import annotations

from behemoth.checkpoint.crc import combine, trailer
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.zeros import crc_of_zeros


def chunk_tail(grid: Grid, data_crc: int, data_bytes: int) -> bytes:
    """The bytes between a chunk's data and the next chunk: padding, the CRC-32C of data and padding, the gap's zeros.

    `data_crc` is the CRC-32C of the chunk's `data_bytes` bytes of data."""
    padding = grid.payload_bytes - data_bytes
    return bytes(padding) + trailer(payload_crc(grid, data_crc, data_bytes)) + bytes(grid.gap_bytes)


def payload_crc(grid: Grid, data_crc: int, data_bytes: int) -> int:
    """CRC-32C of a whole payload from that of its data, which comes first."""
    padding = grid.payload_bytes - data_bytes
    return combine(data_crc, crc_of_zeros(padding), padding) if padding else data_crc
