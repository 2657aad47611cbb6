"""A store that forwards every call to another store: the base of stores that change one thing about reading.

Beside it the arithmetic of `Into`, which all of them need. Neighbours: `counting`, `pacing`, `caching`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from behemoth.ports import Into, ObjectInfo, ObjectStore


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


class WrapperStore:
    """Implements `ports.ObjectStore` by `inner`; subclasses override methods. Thread-safe."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._inner.read_into(key, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def create(self, key: str, data: Buffer) -> None:
        self._inner.create(key, data)

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        self._inner.replace(key, old=old, new=new)

    def delete(self, keys: Sequence[str]) -> None:
        self._inner.delete(keys)
