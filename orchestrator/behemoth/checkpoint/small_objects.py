"""Small objects of a store, taken whole: found by a listing, read as they were listed, created once by several.

Must not know what an object says; its owner does. Neighbours: `framing` (one line with its CRC), and the modules whose
objects these are: `commit_log`, `owner`, `marker`, `signposts`, `commit`.
"""

from __future__ import annotations

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.ports import ObjectInfo, ObjectStore


def find_listed(store: ObjectStore, folder: str, key: str) -> ObjectInfo | None:
    """What the listing of its folder says of an object; None where it is not there. Blocks for the listing."""
    return next((info for info in store.list(folder) if info.key == key), None)


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
    """Create an object, or find that it exists with these bytes: a leader may repeat the work of another one. Raises
    Conflict when it exists with other bytes."""
    try:
        store.create(key, data)
    except Conflict as error:
        standing = bytearray(len(data))
        try:
            store.read_into(key, offset_bytes=0, into=standing)
        except Corrupt:  # it is shorter
            raise error from None
        if standing != data:
            raise
