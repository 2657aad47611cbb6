"""Which ranks the node of a slot has."""

from __future__ import annotations

from behemoth.base.ids import Rank, Slot
from behemoth.base.slots import ranks_of, slot_of


def test_ranks_fill_the_slots_in_order_and_each_slot_gets_as_many() -> None:
    assert [ranks_of(Slot(slot), 3) for slot in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_the_slot_of_a_rank_is_the_one_that_has_it() -> None:
    assert all(rank in ranks_of(slot_of(Rank(rank), 8), 8) for rank in range(64))
