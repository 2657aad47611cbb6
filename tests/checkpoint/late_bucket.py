"""A bucket in which commits are carried out long after their sender has given up."""

from __future__ import annotations

from contextlib import suppress

from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Unavailable
from behemoth.testing.bucket import MemoryBucket


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

    def arrive(self) -> None:
        self.is_late = False
        for key, data in self.sent:
            with suppress(Conflict):  # as S3 says of a key that somebody has: another write's, since the step was free
                self.create(key, data)
