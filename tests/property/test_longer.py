"""All auditors at once over many random histories: the search that finds what the bounded examples do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from behemoth.reconcile.journal import audit, decode_lines
from behemoth.testing.strategies import run_configs
from property.audit import all_auditors
from property.played import SETTLE_US, Example, examples, history_of

_SEARCH = settings(max_examples=3_000, derandomize=False, print_blob=True)


@pytest.mark.longer
@_SEARCH
@given(examples(max_mishaps=25))
def test_every_property_holds_over_long_histories(example: Example) -> None:
    history = history_of(example, *all_auditors())
    history.begin()
    history.play(example.mishaps)
    assert history.calm(SETTLE_US)
    assert history.num_zombie_effects_applied == 0
    assert audit(decode_lines(b"".join(history.journal))) == []


@pytest.mark.longer
@_SEARCH
@given(examples(with_asks=True, max_mishaps=25))
def test_every_property_holds_with_wishes_of_the_operator(example: Example) -> None:
    history = history_of(example, *all_auditors())
    history.begin()
    history.play(example.mishaps)
    assert history.calm(SETTLE_US)
    assert history.num_zombie_effects_applied == 0


@pytest.mark.longer
@_SEARCH
@given(examples(configs=run_configs(max_failures=1_000), max_mishaps=25))
def test_every_run_succeeds_in_the_end(example: Example) -> None:
    history = history_of(example)
    history.begin()
    history.play(example.mishaps)
    assert history.calm(SETTLE_US)
    assert history.body.observation is not None
    assert history.body.observation.outcome == "succeeded"
