"""Buckets in which commits, or deletions, are carried out long after their sender has given up, or is dead."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Unavailable
from behemoth.ports import ObjectInfo
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash


class Late(MemoryBucket):
    """Until they `arrive`, commits are sent and not answered."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, bytes]] = []
        self.is_late = True

    def create(self, key: str, data: Buffer) -> None:
        if self.is_late and key.startswith("commits/"):
            self.sent.append((key, bytes(data)))
            raise Unavailable(f"create {key}: no answer")
        super().create(key, data)

    def copied(self) -> Late:
        """Another bucket with the same objects, and with the same commits on their way."""
        other, same = Late(), self.copy()
        other._objects, other._written_s, other._uploads = same._objects, same._written_s, same._uploads
        other.sent = list(self.sent)
        return other

    def arrive(self) -> None:
        self.is_late = False
        for key, data in self.sent:
            with suppress(Conflict):  # as S3 says of a key that somebody has: another write's, since the step was free
                self.create(key, data)


class LateDeletions(MemoryBucket):
    """Until they `arrive`, deletions are sent, and whoever sent them is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[ObjectInfo] = []
        self.is_late = False

    def delete(self, keys: Sequence[str]) -> None:
        if self.is_late:
            self.sent += [ObjectInfo(key=key, size_bytes=0) for key in keys]
            raise Crash("killed with a deletion on its way")
        super().delete(keys)

    def delete_listed(self, info: ObjectInfo) -> None:
        if self.is_late:
            self.sent.append(info)
            raise Crash("killed with a deletion on its way")
        super().delete_listed(info)

    def arrive(self) -> None:
        """Without a condition where it was sent without one."""
        for info in self.sent:
            if info.etag:
                super().delete_listed(info)
            else:
                super().delete([info.key])
