"""Properties of fold and decide over random histories: faults, a channel that drops, doubles, delays and reorders,
coordinators that die between any two effects. Each sentence of the design is one test."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.reconcile.journal import audit, decode_lines, effects_of, encode_line, replay
from behemoth.state.config import RunConfig
from behemoth.state.evidence import Decided, Evidence, RunOpened
from behemoth.state.observation import Observation, indexes_of
from behemoth.testing.evidences import decided, evidences
from behemoth.testing.strategies import bad_channels, calms, run_configs, shortages, silences, struggles
from property.audit import (
    AgainChangesNothing,
    EvictedBeforeReplaced,
    IncrementalEqualsFullScan,
    LedgerCloses,
    NothingCommittedIsLost,
    NothingIsSleptThrough,
    OldFactsChangeNothing,
    OneAttemptActs,
    SilentNodesAreLost,
    SlotsAreInjective,
)
from property.played import SETTLE_US, Example, examples, history_of, play
from property.stopping import NeverStopsWhatCanGoOn


@given(examples(with_asks=True))
def test_no_node_ever_has_two_holders(example: Example) -> None:
    play(example, SlotsAreInjective(), EvictedBeforeReplaced())


@given(examples(with_asks=True, mishaps=silences()))
def test_nobody_stays_silent_for_longer_than_the_limit_and_is_still_counted_on(example: Example) -> None:
    play(example, SilentNodesAreLost())


@given(examples(with_asks=True, losses=bad_channels(), mishaps=struggles()))
def test_what_is_told_of_an_attempt_or_a_save_that_is_over_changes_nothing(example: Example) -> None:
    play(example, OldFactsChangeNothing())


@settings(max_examples=360)
@given(
    examples(
        with_asks=True,
        configs=run_configs(total_steps=(25, 120), node_wait_s=(15, 900)),
        losses=bad_channels(),
        mishaps=st.one_of(shortages(), calms(), silences()),
    )
)
def test_nothing_that_silence_brings_about_is_slept_through(example: Example) -> None:
    play(example, NothingIsSleptThrough())


@given(examples(with_asks=True))
def test_at_most_one_attempt_acts(example: Example) -> None:
    history = play(example, OneAttemptActs())
    assert history.num_zombie_effects_applied == 0


@given(examples(with_asks=True))
def test_applying_and_deciding_again_changes_nothing(example: Example) -> None:
    play(example, AgainChangesNothing())


@given(examples(configs=run_configs(max_failures=1_000)))
def test_when_faults_cease_the_run_settles_and_succeeds(example: Example) -> None:
    history = history_of(example)
    history.begin()
    history.play(example.mishaps)
    decided_before = history.body.num_decided
    assert history.calm(SETTLE_US)
    assert history.body.observation is not None
    assert history.body.observation.outcome == "succeeded"
    newest = history.cluster.store.newest()
    assert newest is not None
    assert newest.step == example.config.total_steps
    assert history.body.num_decided - decided_before < 2_000


@given(examples(mishaps=struggles()))
def test_a_run_that_can_go_on_is_never_stopped(example: Example) -> None:
    play(example, NeverStopsWhatCanGoOn())


@given(examples(with_asks=True))
def test_what_is_kept_incrementally_equals_a_full_scan(example: Example) -> None:
    play(example, IncrementalEqualsFullScan())


@given(examples(with_asks=True))
def test_folding_the_journal_again_gives_the_same_effects_byte_for_byte(example: Example) -> None:
    history = play(example)
    data = b"".join(history.journal)
    assert audit(decode_lines(data)) == []
    assert replay(decode_lines(data)) == history.body.observation


@settings(max_examples=4)
@given(examples())
def test_another_process_with_other_hashes_decides_the_same_bytes(example: Example) -> None:
    data = b"".join(play(example).journal)
    here = msgspec.json.encode([effects for _, effects in effects_of(decode_lines(data))])
    program = (
        "import sys, msgspec; from behemoth.reconcile.journal import decode_lines, effects_of; "
        "data = sys.stdin.buffer.read(); "
        "sys.stdout.buffer.write(msgspec.json.encode([e for _, e in effects_of(decode_lines(data))]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    there = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=True, timeout=60, env=environment
    )
    assert json.loads(there.stdout) == json.loads(here)
    assert there.stdout == here


@given(examples(with_asks=True))
def test_the_ledger_closes_exactly(example: Example) -> None:
    play(example, LedgerCloses())


@given(examples(with_asks=True))
def test_nothing_committed_is_lost(example: Example) -> None:
    play(example, NothingCommittedIsLost())


@given(
    config=run_configs(),
    told=st.lists(
        st.tuples(st.sampled_from([0, 1, 200_000, 4_000_000]), st.one_of(evidences(), decided())), max_size=40
    ),
)
def test_fold_and_decide_take_any_evidence_in_any_order(config: RunConfig, told: list[tuple[int, Evidence]]) -> None:
    now_us = 0
    obs = fold(None, RunOpened(config=config), now_us)
    for delay_us, evidence in told:
        now_us += delay_us
        obs = _turn(obs, evidence, now_us)


def _turn(obs: Observation, evidence: Evidence, now_us: int) -> Observation:
    """One turn of the loop on evidence that may be nonsense: what holds always must hold even then."""
    told = msgspec.json.decode(encode_line(now_us, evidence))
    assert told["now_us"] == now_us
    obs = fold(obs, evidence, now_us)
    effects = decide(obs).effects
    obs = fold(obs, Decided(effects=effects), now_us)
    assert decide(obs).effects == ()
    holders = list(obs.holders.values())
    assert len(set(holders)) == len(holders)
    for name, index in indexes_of(obs).items():
        assert dict(getattr(obs, name)) == dict(index), f"index {name} is not what a scan finds"
    return obs
