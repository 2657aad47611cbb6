"""Histories that once broke a property, with all auditors around them."""

from __future__ import annotations

import msgspec

from behemoth.base.ids import NodeId, Step
from behemoth.simulation.channel import Loss
from behemoth.simulation.history import Strike, Wait
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
