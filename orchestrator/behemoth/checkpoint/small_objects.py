"""Small objects of a store, taken whole: found by a listing, read as they were listed, created once by several.

What several may create at once, all with the same bytes, are objects of a write: a leader and its successor, two
workers of a job, two copies to one store. A name below a write's folder belongs to that write, so whoever finds the
object there has nothing to do, unless it holds something else. That is nobody's damage, but somebody else's object in
the way. Must not know what an object says, nor remove it; its owner does. Neighbours: `framing` (one line with its
CRC), and the modules whose objects these are: `commit_log`, `owner`, `marker`, `signposts`, `commit`, `draining`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.checkpoint.threads import in_order
from behemoth.ports import ObjectInfo, ObjectStore

NUM_AT_A_TIME = 16
"""Reads of small objects under way: a bucket answers after some 30 ms, and a long run has hundreds of them."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def find_listed(store: ObjectStore, folder: str, key: str) -> ObjectInfo | None:
    """What the listing of its folder says of an object; None where it is not there. Blocks for the listing."""
    return next((info for info in store.list(folder) if info.key == key), None)


def of_each(read: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """What a function that reads a small object gives for each item, in their order; some are read ahead. Its first
    error in that order ends it."""
    return in_order(read, items, threads=NUM_AT_A_TIME, name="small-objects")


def read_listed(store: ObjectStore, info: ObjectInfo) -> bytes | None:
    """A whole object as long as its listing says; the caller has bounded that. None when it went after it was listed.
    Raises Corrupt for one that is shorter by now, and the store's errors."""
    if info.size_bytes == 0:
        return b""
    data = bytearray(info.size_bytes)
    try:
        store.read_into(info.key, offset_bytes=0, into=data)
    except NotFound:
        return None
    return bytes(data)


def create_same(store: ObjectStore, key: str, data: bytes) -> None:
    """Create an object, or find that it exists with these bytes. Raises Conflict when it exists with others: what was
    to be written is whole, so that another try, once that is out of the way, succeeds."""
    try:
        store.create(key, data)
    except Conflict as error:
        if not holds(store, key, data) or _goes_on(store, key, len(data)):
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


def _goes_on(store: ObjectStore, key: str, num_bytes: int) -> bool:
    """Whether an object is longer than so many bytes."""
    try:
        store.read_into(key, offset_bytes=num_bytes, into=bytearray(1))
    except (Corrupt, NotFound):
        return False
    return True
