"""Buffers to and from offsets of a file: pwritev and preadv in full, whatever the system takes at once.

Must know descriptors and buffers only. The neighbour is `local`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from typing_extensions import Buffer

from behemoth.base.errors import Corrupt, Invalid
from behemoth.ports import Part

MAX_BUFFERS_PER_CALL = min(1024, os.sysconf("SC_IOV_MAX"))
"""Linux takes 1024 buffers in one pwritev(2) (IOV_MAX)."""

Run = tuple[int, list[memoryview]]
"""An offset in bytes, and what lands there one after another."""


def byte_view(buffer: Buffer, doing: str) -> memoryview:
    """The buffer's bytes, without a copy. Raises Invalid for a strided one, or an element type without a format."""
    try:
        view = memoryview(buffer)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError) as error:
        hint = "pass array.reshape(-1).view(numpy.uint8) of a C-contiguous array"
        raise Invalid(f"{doing}: expected a C-contiguous buffer of plain bytes, got {error}", hint=hint) from error


def runs_of(key: str, size_bytes: int, parts: Sequence[Part]) -> list[Run]:
    """Parts as runs, those that follow one another joined. Raises Invalid for bytes outside of the object."""
    runs: list[Run] = []
    next_offset_bytes = -1
    for part in parts:
        views = [view for view in (byte_view(buffer, f"write {key}") for buffer in part.buffers) if view.nbytes]
        end_bytes = part.offset_bytes + sum(view.nbytes for view in views)
        if part.offset_bytes < 0 or end_bytes > size_bytes:
            got = f"[{part.offset_bytes}, {end_bytes})"
            raise Invalid(f"write {key}: expected bytes within [0, {size_bytes}), got {got}")
        if part.offset_bytes == next_offset_bytes:
            runs[-1][1].extend(views)
        else:
            runs.append((part.offset_bytes, views))
        next_offset_bytes = end_bytes
    return runs


def write_all(fd: int, run: Run) -> None:
    """Write the whole run. Raises OSError; the run may then be there in part."""
    offset_bytes, views = run
    first = 0
    while first < len(views):
        batch = views[first : first + MAX_BUFFERS_PER_CALL]
        written_bytes = os.pwritev(fd, batch, offset_bytes)
        offset_bytes += written_bytes
        while first < len(views) and written_bytes >= views[first].nbytes:
            written_bytes -= views[first].nbytes
            first += 1
        if written_bytes:
            views = [views[first][written_bytes:], *views[first + 1 :]]
            first = 0


def read_all(fd: int, key: str, offset_bytes: int, into: memoryview) -> None:
    """Fill `into`. Raises Corrupt when the file ends before, OSError."""
    read_bytes = 0
    while read_bytes < into.nbytes:
        count = os.preadv(fd, [into[read_bytes:]], offset_bytes + read_bytes)
        if count == 0:
            expected = f"at least {offset_bytes + into.nbytes} bytes"
            raise Corrupt(f"read {key}: expected {expected}, got {os.fstat(fd).st_size} bytes", code="truncated")
        read_bytes += count
