"""Creates small objects of a write that several may create at once, all with the same bytes: a leader and its
successor, two workers of a job, two copies to one store.

A name below a write's folder belongs to that write, so whoever finds the object there has nothing to do, unless it
holds something else. That is nobody's damage, but somebody else's object in the way. Must not remove it: who may, knows
what was listed. Neighbours: `commit`, `draining` and `interop.unit_writer`, which call this.
"""

from __future__ import annotations

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.ports import ObjectStore


def create_same(store: ObjectStore, key: str, data: bytes) -> None:
    """Create an object, or find that it exists with these bytes. Raises Conflict when it exists with others: what was
    to be written is whole, so that another try, once that is out of the way, succeeds."""
    try:
        store.create(key, data)
    except Conflict as error:
        if not holds(store, key, data):
            raise Conflict(
                f"object {key}: expected none, or one with the {len(data)} bytes of this write, got another",
                hint="something else writes below the folder of this write: stop it, and try again",
                code="object-other",
            ) from error


def holds(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether an object is there that begins with these bytes; a listing tells its size."""
    standing = bytearray(len(data))
    try:
        store.read_into(key, offset_bytes=0, into=standing)
    except (Corrupt, NotFound):  # a shorter one, or none any more
        return False
    return bytes(standing) == data
