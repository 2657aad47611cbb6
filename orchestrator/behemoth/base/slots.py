"""Which ranks the node of a slot has: ranks fill the slots in order, as many in each. Pure.

Whoever asks which node has a rank, or which ranks a node has, asks here. Neighbour: `ids`, which names both.
"""

from __future__ import annotations

from behemoth.base.ids import Rank, Slot


def slot_of(rank: Rank, ranks_per_node: int) -> Slot:
    """The slot whose node has this rank."""
    return Slot(rank // ranks_per_node)


def ranks_of(slot: Slot, ranks_per_node: int) -> list[Rank]:
    """The ranks of the slot's node, by their local rank."""
    return [Rank(slot * ranks_per_node + local_rank) for local_rank in range(ranks_per_node)]
