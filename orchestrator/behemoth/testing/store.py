"""The store in memory that stands for a directory in tests, and what every such stand-in can do.

It passes the suites that adapters pass, so it may stand for one anywhere; it must not be more forgiving than a disk.
Neighbours: `objects`, `ranges` and `moves` (the suites), `bucket` (the stand-in for S3), `faults` (breaks stores).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.ports import Into, ObjectInfo, ObjectStore, Part
from behemoth.storage.keys import segments_of, segments_of_prefix
from behemoth.storage.positional import byte_view, runs_of, target_views, total_bytes


class MemoryObjects:
    """Objects in a dictionary: what every store can do."""

    def __init__(self) -> None:
        self._objects: dict[str, bytearray] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: Buffer) -> None:
        segments_of(key)
        view = byte_view(data, f"create {key}")
        with self._lock:
            self._refuse_clash(key)
            if key in self._objects:
                raise Conflict(f"create {key}: expected no such object, got one", code="exists")
            self._objects[key] = bytearray(view)

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        segments_of(key)
        before, after = byte_view(old, f"replace {key}"), byte_view(new, f"replace {key}")
        with self._lock:
            standing = self._objects.get(key)
            if standing is None:
                raise NotFound(f"replace {key}: no such object")
            if standing not in (before, after):
                raise Conflict(f"replace {key}: expected the object as it was, got another", code="changed")
            self._objects[key] = bytearray(after)

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        segments_of(key)
        views = target_views(into, key, offset_bytes)
        end_bytes = offset_bytes + total_bytes(views)
        with self._lock:
            data = self._objects.get(key)
            if data is None:
                raise NotFound(f"read {key}: no such object")
            if end_bytes > len(data) and end_bytes > offset_bytes:
                expected = f"at least {end_bytes} bytes"
                raise Corrupt(f"read {key}: expected {expected}, got {len(data)} bytes", code="truncated")
            for view in views:
                view[:] = memoryview(data)[offset_bytes : offset_bytes + view.nbytes]
                offset_bytes += view.nbytes

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        start = "".join(f"{segment}/" for segment in segments_of_prefix(prefix))
        with self._lock:
            found = sorted((key, len(data)) for key, data in self._objects.items() if key.startswith(start))
        yield from (ObjectInfo(key=key, size_bytes=size_bytes) for key, size_bytes in found)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            segments_of(key)
            with self._lock:
                self._objects.pop(key, None)
                self._forget(key)

    def _refuse_clash(self, key: str) -> None:
        """Raises Conflict for a name that this kind of store cannot have beside those it has."""

    def _forget(self, key: str) -> None:
        """The object is gone."""


class MemoryStore(MemoryObjects):
    """Files. `after_power_loss` gives what a disk may hold when unsealed bytes are gone."""

    def __init__(self) -> None:
        super().__init__()
        self._unsealed: set[str] = set()

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        segments_of(key)
        runs = runs_of(key, size_bytes, parts)
        with self._lock:
            self._refuse_clash(key)
            data = self._objects.setdefault(key, bytearray(size_bytes))
            if len(data) != size_bytes:
                raise Conflict(f"write {key}: expected an object of {size_bytes} bytes, got one of {len(data)} bytes")
            self._unsealed.add(key)
            for offset_bytes, views in runs:
                joined = b"".join(views)
                data[offset_bytes : offset_bytes + len(joined)] = joined

    def seal(self, keys: Sequence[str]) -> None:
        for key in keys:
            segments_of(key)
            with self._lock:
                if key not in self._objects:
                    raise NotFound(f"seal {key}: no such object")
                self._unsealed.discard(key)

    def move(self, source: str, target: str) -> None:
        segments_of(source)
        segments_of(target)
        with self._lock:
            self._refuse_clash(target)
            if source not in self._objects:
                raise NotFound(f"move {source}: no such object")
            if target in self._objects:
                raise Conflict(f"move to {target}: expected no such object, got one", code="exists")
            self._objects[target] = self._objects.pop(source)
            if source in self._unsealed:
                self._unsealed.remove(source)
                self._unsealed.add(target)

    def copy(self) -> MemoryStore:
        """A store of its own with the same objects, as a process that was killed leaves them."""
        after = MemoryStore()
        with self._lock:
            after._objects = {key: data[:] for key, data in self._objects.items()}
            after._unsealed = set(self._unsealed)
        return after

    def after_power_loss(self, *, seed: int) -> MemoryStore:
        """A new store as a power cut could leave it: each unsealed object is gone, zero, cut to half of its bytes, or
        whole, by a generator with this seed."""
        random = np.random.default_rng(seed)
        after = MemoryStore()
        with self._lock:
            for key, data in sorted(self._objects.items()):
                kept = data[:] if key not in self._unsealed else _torn(data, int(random.integers(4)))
                if kept is not None:
                    after._objects[key] = kept
        return after

    def _refuse_clash(self, key: str) -> None:
        """A directory cannot hold `a` and `a/b` both; so the stand-in does not either."""
        segments = key.split("/")
        above = {"/".join(segments[:depth]) for depth in range(1, len(segments))}
        if above & self._objects.keys() or any(other.startswith(f"{key}/") for other in self._objects):
            raise Conflict(f"write {key}: expected a free name, got one that an object and a folder claim")

    def _forget(self, key: str) -> None:
        self._unsealed.discard(key)


def _torn(data: bytearray, fate: int) -> bytearray | None:
    match fate:
        case 0:
            return None
        case 1:
            return bytearray(len(data))
        case 2:
            return data[: len(data) // 2] + bytearray(len(data) - len(data) // 2)
        case _:
            return data[:]


def read(store: ObjectStore, key: str, num_bytes: int) -> bytes:
    """The first `num_bytes` of an object."""
    into = bytearray(num_bytes)
    store.read_into(key, offset_bytes=0, into=into)
    return bytes(into)


def contents(store: ObjectStore) -> dict[str, bytes]:
    """Every object, by its key."""
    return {info.key: read(store, info.key, info.size_bytes) for info in store.list("")}
