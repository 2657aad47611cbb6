"""A store that forwards every call to another store: the base of stores that change one thing about reading.

Neighbours: `counting`, `pacing` and `caching`, which are such stores, and `into` (the buffers of a read).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from behemoth.ports import Into, ObjectInfo, ObjectStore


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
