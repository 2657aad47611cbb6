"""What a read fills, one buffer or several, as stores that wrap another one have to look at it. Works on memory only.

Neighbours: `ports.Into`, and `wrapper_store`, on which those stores are built.
"""

from __future__ import annotations

from typing_extensions import Buffer

from behemoth.ports import Into


def buffers_of(into: Into) -> tuple[Buffer, ...]:
    """The buffers that a read fills, in order."""
    return into if isinstance(into, tuple) else (into,)


def num_bytes(into: Into) -> int:
    """How many bytes a read into `into` asks for."""
    return sum(memoryview(one).nbytes for one in buffers_of(into))


def spread(data: memoryview, into: Into) -> None:
    """Copy the first bytes of `data` into the buffers of a read; `data` has at least as many."""
    start = 0
    for one in buffers_of(into):
        target = memoryview(one)
        if target.nbytes:
            target.cast("B")[:] = data[start : start + target.nbytes]
        start += target.nbytes
