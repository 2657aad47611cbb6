"""Where the first gang of a term goes: nodes that had a slot before keep it, then the first ones of the run file that
have joined. Pure. Neighbour: `spares`."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from behemoth.base.ids import NodeId, Slot


def first_gang(
    present: Mapping[NodeId, int], *, num_slots: int, former: Mapping[NodeId, Slot]
) -> tuple[NodeId, ...] | None:
    """Holders of slots 0, 1, ... out of `present` (node -> order), None while there are too few. `former`: the slots of
    those that had one when the run stood last; what their own disks hold is those slots' state.

    Neither spares nor former holders are waited for: a gang that could train and waits loses more than they can save.
    """
    if len(present) < num_slots:
        return None
    chosen = heapq.nsmallest(num_slots, present, key=lambda name: (name not in former, present[name]))
    gang = {former[name]: name for name in chosen if name in former}
    others = iter(name for name in chosen if name not in former)
    return tuple(gang[slot] if slot in gang else next(others) for slot in map(Slot, range(num_slots)))
