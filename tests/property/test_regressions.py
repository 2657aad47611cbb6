"""Histories that once broke a property, with all auditors around them."""

from __future__ import annotations

import msgspec

from behemoth.base.ids import NodeId, Step
from behemoth.simulation.channel import Loss
from behemoth.simulation.history import Crash, FlipBit, Strike, Wait
from behemoth.simulation.timing import Timing
from behemoth.state.config import Cadence
from property.audit import all_auditors
from property.played import Example, play
from property.test_auditors import EXAMPLE

SECOND_US = 1_000_000


def test_steps_count_although_the_word_of_the_restore_was_lost() -> None:
    """The first step heard of stood for the restore, and its own, earlier times then shut out every later step."""
    failure = Strike(kind="exit", order=0, repair_us=SECOND_US)
    config = msgspec.structs.replace(
        EXAMPLE.config,
        nodes=(NodeId("n0"),),
        num_slots=1,
        total_steps=Step(120),
        cadence=Cadence(interval_us=5_730_000),
        rejoin_us=0,
        node_wait_us=900 * SECOND_US,
    )
    example = Example(
        config=config,
        timing=Timing(write_us=200_000, report_us=SECOND_US),
        loss=Loss(drop=0.05, duplicate=0.3, delay=0.05, max_delay_us=100_000),
        seed=0,
        mishaps=(
            Wait(for_us=28 * SECOND_US),
            failure,
            Wait(for_us=3 * SECOND_US),
            failure,
            Wait(for_us=9 * SECOND_US),
            failure,
        ),
    )
    play(example, *all_auditors())


def test_an_end_without_the_last_checkpoint_counts_though_it_shows_only_in_the_decision() -> None:
    """The auditor missed it, since no incident was open before the save was given up."""
    freeze = Strike(kind="freeze", order=0, repair_us=SECOND_US // 2)
    config = msgspec.structs.replace(
        EXAMPLE.config,
        nodes=(NodeId("n0"), NodeId("n1"), NodeId("n2")),
        num_slots=1,
        total_steps=Step(120),
        cadence=Cadence(interval_us=5 * SECOND_US),
        node_wait_us=900 * SECOND_US,
    )
    example = Example(
        config=config,
        timing=Timing(refuse_us=SECOND_US, last_leaves_when="written", write_us=6_000_000, report_us=10 * SECOND_US),
        loss=Loss(drop=0.3, duplicate=0.05, delay=0.05, max_delay_us=100_000),
        seed=44631,
        mishaps=(
            Wait(for_us=25_300_000),
            freeze,
            Wait(for_us=25 * SECOND_US),
            Crash(num_applied=0, down_us=300_000, do_agents_survive=True, is_tail_lost=False),
            Wait(for_us=25 * SECOND_US),
            Strike(kind="node-loss", order=2, repair_us=120 * SECOND_US),
            Wait(for_us=25 * SECOND_US),
            FlipBit(),
            Wait(for_us=25 * SECOND_US),
            Crash(num_applied=0, down_us=0, do_agents_survive=True, is_tail_lost=True),
            freeze,
            Strike(kind="node-loss", order=1, repair_us=2 * SECOND_US),
            Wait(for_us=9 * SECOND_US),
            Strike(kind="exit", order=1, repair_us=SECOND_US // 2),
            Wait(for_us=25 * SECOND_US),
            Strike(kind="exit", order=1, repair_us=SECOND_US // 2),
            Wait(for_us=25 * SECOND_US),
            Strike(kind="exit", order=0, repair_us=SECOND_US // 2),
        ),
    )
    history = play(example, *all_auditors())
    assert history.body.observation is not None
    assert history.body.observation.outcome == "failed"
