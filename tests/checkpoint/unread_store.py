"""A store some of whose objects cannot be read: another user's, on a bad place of the disk, or refused."""

from __future__ import annotations

from behemoth.base.errors import BehemothError, Denied, Invalid, Unavailable
from behemoth.ports import Into
from behemoth.testing.faults import FaultyStore
from behemoth.testing.store import MemoryStore

DENIED = Denied("permission denied")
BAD_PLACE = Unavailable("input/output error", code="io-error")
REFUSED = Invalid("invalid argument")


class Unread(FaultyStore):
    """Reads of the keys in `errors` fail."""

    def __init__(self, inner: MemoryStore, errors: dict[str, BehemothError]) -> None:
        super().__init__(inner)
        self.errors = errors

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        if key in self.errors:
            raise self.errors[key]
        super().read_into(key, offset_bytes=offset_bytes, into=into)
