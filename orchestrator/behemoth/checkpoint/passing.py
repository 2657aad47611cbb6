"""A store that passes everything on to another one, for those that change one thing about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from behemoth.ports import Into, ObjectInfo, ObjectStore


def buffers_of(into: Into) -> tuple[Buffer, ...]:
    """What a read fills, one behind the other."""
    return into if isinstance(into, tuple) else (into,)


def num_bytes(into: Into) -> int:
    """What a read asks for."""
    return sum(memoryview(one).nbytes for one in buffers_of(into))


def spread(data: memoryview, into: Into) -> None:
    """Copy the front of `data` to where a read shall put it."""
    start = 0
    for one in buffers_of(into):
        target = memoryview(one)
        if target.nbytes:
            target.cast("B")[:] = data[start : start + target.nbytes]
        start += target.nbytes


class PassingStore:
    """As `inner` in all, until a subclass says otherwise. Thread-safe."""

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
