"""One example of a property test: a config, a channel, a history, and the auditors that look on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from behemoth.simulation.body import Brain
from behemoth.simulation.channel import Loss
from behemoth.simulation.cluster import Cluster
from behemoth.simulation.history import History, Mishap
from behemoth.simulation.timing import Timing
from behemoth.state.config import RunConfig
from behemoth.state.effect import Effect
from behemoth.testing import strategies
from property.auditor import Auditor, Together

SETTLE_US = 1_800_000_000
"""Virtual time within which a run of two minutes must be over once faults cease, repairs and backoffs included."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """What hypothesis draws. `repr` of a failing one is all that is needed to play it again."""

    config: RunConfig
    timing: Timing
    loss: Loss | None
    seed: int
    mishaps: Sequence[Mishap]


def examples(
    *,
    with_asks: bool = False,
    max_mishaps: int = 12,
    configs: st.SearchStrategy[RunConfig] | None = None,
    losses: st.SearchStrategy[Loss | None] | None = None,
    mishaps: st.SearchStrategy[list[Mishap]] | None = None,
) -> st.SearchStrategy[Example]:
    """Any run through any history, unless a property needs its own kind of runs, channels or mishaps."""
    anything = strategies.histories(with_asks=with_asks, max_mishaps=max_mishaps)
    return st.builds(
        Example,
        config=configs if configs is not None else strategies.run_configs(),
        timing=strategies.timings(),
        loss=losses if losses is not None else strategies.losses(),
        seed=st.integers(0, 2**16),
        mishaps=anything if mishaps is None else st.one_of(anything, mishaps),
    )


def history_of(example: Example, *auditors: Auditor, brain: Brain | None = None) -> History:
    """A history that is about to begin, with these auditors around it."""
    together = Together(list(auditors))

    def on_effect(cluster: Cluster, effect: Effect) -> bool:
        together.before(cluster, effect)
        is_applied = cluster.apply(effect)
        together.after(cluster, effect, is_applied=is_applied)
        return is_applied

    return History(
        config=example.config,
        timing=example.timing,
        seed=example.seed,
        loss=example.loss,
        brain=together.brain(brain if brain is not None else Brain()),
        watch=together.watch,
        on_effect=on_effect,
    )


def play(example: Example, *auditors: Auditor, brain: Brain | None = None) -> History:
    """Play it to the end of its mishaps, then for half a virtual minute more."""
    history = history_of(example, *auditors, brain=brain)
    history.begin()
    history.play(example.mishaps)
    history.calm(30_000_000)
    return history
