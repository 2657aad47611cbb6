"""Whether the nodes of a run read a checkpoint together: each part by one of them, which passes it on. Pure.

One place, because two ask: each node for what it has mounted itself, and a plan, which tells it beforehand. Must not
know what kind of store serves all nodes; who asks does. Neighbours: `agent.store_services`, `app.configure`.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.wire.setup import ShareReads


def are_shared(mode: ShareReads, *, num_nodes: int, is_served: Callable[[], bool]) -> bool:
    """`mode`: as the run file says. `is_served`: whether all nodes ask the same servers, so that what one reads is
    taken from the others; asked only where that decides, since it may wait for servers."""
    return num_nodes > 1 and (mode == "always" or (mode == "auto" and is_served()))
