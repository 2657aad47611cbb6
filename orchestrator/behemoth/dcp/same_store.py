"""Checks, before a rank of a DCP save writes, that it sees the same store as its coordinator.

A path can be another folder for another rank: a node's own disk, a mount that is missing, another working directory.
The rank would write to a place that nobody reads, its receipts would look valid, and only a load would fail. So the
coordinator creates a marker below the write's prefix, which each rank must find, and deletes it before the commit.
Neighbours: `writer` (when this is), `address` (what a rank was told).
"""

from __future__ import annotations

from behemoth.base.errors import Invalid, NotFound
from behemoth.dcp.address import Address
from behemoth.dcp.orders import Orders
from behemoth.ports import ObjectStore

_MARK = "__begun"
"""Name of the marker; no array's name maps to it (`checkpoint.names`)."""


def mark(store: ObjectStore, prefix: str) -> None:
    """Create the marker; before any rank is told of the write."""
    store.create(_key(prefix), b"1")


def unmark(store: ObjectStore, prefix: str) -> None:
    """Delete the marker; when all ranks have written."""
    store.delete([_key(prefix)])


def require_same(store: ObjectStore, address: Address, orders: Orders) -> None:
    """`address` is what this rank was told. Raises Invalid where it is another checkpoint than the coordinator's."""
    if address.step not in (None, orders.step):
        raise Invalid(
            f"checkpoint in {address.url}: expected step {orders.step}, which the coordinator of the save was given, "
            f"got {address.step} on another rank",
            hint="give the same id to all ranks",
            code="dcp-ranks-differ",
        )
    try:
        store.read_into(_key(orders.prefix), offset_bytes=0, into=bytearray(1))
    except NotFound as error:
        raise Invalid(
            f"checkpoint store {address.url}: expected the one in which the coordinator began write "
            f"{orders.write_id!r} of step {orders.step}, got another one on this rank",
            hint="give all ranks one folder that every node mounts, by its absolute path, or a bucket",
            code="dcp-other-store",
        ) from error


def _key(prefix: str) -> str:
    return f"{prefix}/{_MARK}"
