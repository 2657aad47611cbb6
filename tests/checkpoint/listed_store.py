"""Stores in memory that note what is listed of them."""

from __future__ import annotations

from collections.abc import Iterator

from behemoth.ports import ObjectInfo
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import MemoryObjects, MemoryStore


class Listed(MemoryObjects):
    """`prefixes` are those that were listed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes: list[str] = []

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.prefixes.append(prefix)
        return super().list(prefix)


class ListedStore(Listed, MemoryStore):
    """A directory."""


class ListedBucket(Listed, MemoryBucket):
    """A bucket."""
