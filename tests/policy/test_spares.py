"""Spares, strikes and patience."""

from __future__ import annotations

import pytest

from behemoth.base.ids import NodeId, Slot
from behemoth.policy.placement import first_gang
from behemoth.policy.spares import (
    HALF_LIFE_US,
    PROBATION_US,
    STRIKE_MICRO,
    backoff_us,
    best_spares,
    is_struck_out,
    patience_us,
    strikes_micro,
)
from behemoth.state.observation import Node


@pytest.mark.parametrize(
    ("age_us", "expected"),
    [(0, 1_000_000), (HALF_LIFE_US // 2, 750_000), (HALF_LIFE_US, 500_000), (3 * HALF_LIFE_US, 125_000), (10**18, 0)],
)
def test_a_strike_is_halved_every_week(age_us: int, expected: int) -> None:
    assert strikes_micro(Node(order=0, strikes_micro=STRIKE_MICRO, struck_us=0), now_us=age_us) == expected


@pytest.mark.parametrize(("age_us", "expected"), [(0, True), (HALF_LIFE_US, True), (HALF_LIFE_US + 10**9, False)])
def test_a_second_strike_within_a_week_takes_a_node_out(age_us: int, expected: bool) -> None:
    assert is_struck_out(Node(order=0, strikes_micro=STRIKE_MICRO), now_us=age_us) is expected


def test_a_node_without_strikes_is_not_struck_out() -> None:
    assert not is_struck_out(Node(order=0), now_us=0)


def test_fresh_spares_go_first_then_few_strikes_then_the_run_files_order() -> None:
    now_us = 10 * PROBATION_US
    nodes = {
        NodeId("returned"): Node(order=0, returned_us=now_us - PROBATION_US + 1),
        NodeId("struck"): Node(order=1, strikes_micro=STRIKE_MICRO, struck_us=now_us),
        NodeId("late"): Node(order=3),
        NodeId("early"): Node(order=2, returned_us=now_us - PROBATION_US),
    }
    assert best_spares(nodes.items(), count=4, now_us=now_us) == ["early", "late", "struck", "returned"]
    assert best_spares(nodes.items(), count=1, now_us=now_us) == ["early"]


@pytest.mark.parametrize(
    ("refusals", "expected_us"), [(0, 0), (1, 10**6), (4, 8 * 10**6), (15, 3_600 * 10**6), (500, 3_600 * 10**6)]
)
def test_a_node_that_refuses_is_asked_less_and_less_often(refusals: int, expected_us: int) -> None:
    assert backoff_us(refusals) == expected_us


@pytest.mark.parametrize(("refusals", "expected_us"), [(0, 60), (1, 120), (40, PROBATION_US)])
def test_patience_with_an_ordered_agent_doubles_up_to_a_day(refusals: int, expected_us: int) -> None:
    assert patience_us(refusals, start_us=60) == expected_us


def test_the_first_gang_is_the_first_nodes_of_the_run_file_that_joined() -> None:
    present = {NodeId("d"): 3, NodeId("b"): 1, NodeId("c"): 2}
    assert first_gang(present, num_slots=2, former={}) == ("b", "c")
    assert first_gang(present, num_slots=4, former={}) is None


def test_nodes_that_had_a_slot_before_keep_it_and_go_before_those_that_had_none() -> None:
    present = {NodeId(name): order for order, name in enumerate("abcd")}
    former = {NodeId("d"): Slot(0), NodeId("b"): Slot(2)}
    assert first_gang(present, num_slots=3, former=former) == ("d", "a", "b")
    assert first_gang(present, num_slots=2, former={NodeId("d"): Slot(0), NodeId("a"): Slot(1)}) == ("d", "a")
