"""Where the first gang goes: the first nodes of the run file that have joined. Pure. Neighbour: `spares`."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from behemoth.base.ids import NodeId


def first_gang(present: Mapping[NodeId, int], *, num_slots: int) -> tuple[NodeId, ...] | None:
    """Holders of slots 0, 1, ... out of `present` (node -> order), None while there are too few.

    Spares are not waited for: a gang that could train and waits for a spare loses more than the spare can save.
    """
    if len(present) < num_slots:
        return None
    return tuple(heapq.nsmallest(num_slots, present, key=present.__getitem__))
