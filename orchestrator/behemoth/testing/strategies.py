"""Hypothesis strategies for runs: small configs, bad channels, histories of mishaps.

Histories drive the model of `behemoth.simulation`: a closed loop, in which what happens follows from what the brain
did. Imports hypothesis, as only its neighbour `evidences` does, which has evidence in any order.
"""

from __future__ import annotations

from hypothesis import strategies as st

from behemoth.base.ids import NodeId, RunUid, Step
from behemoth.simulation.channel import Loss
from behemoth.simulation.faults import FaultKind
from behemoth.simulation.history import Ask, Crash, FlipBit, Mishap, Strike, Wait, WriteFault
from behemoth.simulation.timing import Timing
from behemoth.state.config import Cadence, HangFloors, RunConfig

SECOND_US = 1_000_000
MAX_NODES = 6
FAULT_KINDS: tuple[FaultKind, ...] = ("exit", "signal", "node-loss", "freeze", "hang")


def run_configs(
    *, max_failures: int = 3, total_steps: tuple[int, ...] = (120,), node_wait_s: tuple[int, ...] = (900,)
) -> st.SearchStrategy[RunConfig]:
    """Runs of 1 to 4 slots with up to 2 spares, two minutes of one-second steps, a save every few of them."""
    return st.builds(
        run_config,
        num_slots=st.integers(1, 4),
        num_spares=st.integers(0, MAX_NODES - 4),
        cadence=st.one_of(
            st.builds(Cadence, steps=st.integers(5, 30)),
            st.builds(Cadence, interval_us=st.integers(5 * SECOND_US, 30 * SECOND_US)),
        ),
        rejoin_us=st.sampled_from([0, 5 * SECOND_US]),
        max_failures=st.just(max_failures),
        total_steps=st.sampled_from(total_steps),
        node_wait_s=st.sampled_from(node_wait_s),
    )


def run_config(
    *,
    num_slots: int,
    num_spares: int,
    cadence: Cadence,
    rejoin_us: int,
    max_failures: int,
    total_steps: int,
    node_wait_s: int,
) -> RunConfig:
    """A run whose limits fit steps of a second."""
    return RunConfig(
        run_uid=RunUid("run"),
        nodes=tuple(NodeId(f"n{order}") for order in range(num_slots + num_spares)),
        num_slots=num_slots,
        ranks_per_node=2,
        total_steps=Step(total_steps),
        cadence=cadence,
        keep_last=2,
        keep_every_steps=None,
        heartbeat_limit_us=3 * SECOND_US,
        hang_floors=HangFloors(
            start_us=10 * SECOND_US,
            restore_us=10 * SECOND_US,
            first_step_us=10 * SECOND_US,
            step_us=5 * SECOND_US,
            eval_us=10 * SECOND_US,
            save_us=10 * SECOND_US,
        ),
        settle_us=SECOND_US // 2,
        max_failures=max_failures,
        node_wait_us=node_wait_s * SECOND_US,
        rejoin_us=rejoin_us,
        save_limit_us=20 * SECOND_US,
    )


def timings() -> st.SearchStrategy[Timing]:
    """Runtimes that refuse or keep a wish, programs that leave early or late after their last save."""
    return st.builds(
        Timing,
        refuse_us=st.sampled_from([SECOND_US, None]),
        last_leaves_when=st.sampled_from(["written", "staged"]),
        write_us=st.sampled_from([200_000, 2 * SECOND_US, 6 * SECOND_US]),
        report_us=st.sampled_from([SECOND_US, 10 * SECOND_US]),
    )


def losses() -> st.SearchStrategy[Loss | None]:
    """A perfect channel, or a bad one."""
    return st.one_of(st.none(), bad_channels())


def bad_channels() -> st.SearchStrategy[Loss]:
    """Drops, doubles and delays up to a third of everything, and says old things again."""
    share = st.sampled_from([0.0, 0.05, 0.3])
    return st.builds(
        Loss,
        drop=share,
        duplicate=share,
        delay=share,
        max_delay_us=st.sampled_from([100_000, SECOND_US, 8 * SECOND_US]),
        echo=st.sampled_from([0.5, 0.1, 0.0]),
    )


def waits() -> st.SearchStrategy[Mishap]:
    return st.builds(
        Wait, for_us=st.sampled_from([0, 1, 30_000, 300_000, SECOND_US, 3 * SECOND_US, 9 * SECOND_US, 25 * SECOND_US])
    )


def strikes(*kinds: FaultKind) -> st.SearchStrategy[Mishap]:
    """Faults of these kinds (all when none is named) on any node; machines come back within two minutes."""
    return st.builds(
        Strike,
        kind=st.sampled_from(kinds or FAULT_KINDS),
        order=st.integers(0, MAX_NODES - 1),
        repair_us=st.sampled_from([500_000, 2 * SECOND_US, 10 * SECOND_US, 120 * SECOND_US]),
    )


def crashes() -> st.SearchStrategy[Mishap]:
    """Coordinators that die after any number of effects."""
    return st.builds(
        Crash,
        num_applied=st.integers(0, 3),
        down_us=st.sampled_from([0, 300_000, 4 * SECOND_US, 15 * SECOND_US]),
        do_agents_survive=st.booleans(),
        is_tail_lost=st.booleans(),
    )


def asks() -> st.SearchStrategy[Mishap]:
    return st.builds(Ask, request=st.sampled_from(["suspend", "stop", "resume"]))


def histories(*, with_asks: bool = False, max_mishaps: int = 12) -> st.SearchStrategy[list[Mishap]]:
    """Mishaps, each after a wait; the first wait lets most runs come up."""
    kinds = [strikes(), strikes(), crashes(), st.just(WriteFault()), st.just(FlipBit())]
    if with_asks:
        kinds.append(asks())
    pairs = st.lists(st.tuples(waits(), st.one_of(*kinds)), max_size=max_mishaps)
    return st.builds(_history, first=st.sampled_from([6, 0, 4, 25]), pairs=pairs)


def struggles() -> st.SearchStrategy[list[Mishap]]:
    """A run that got somewhere, and is then struck again and again, each time a little sooner than the time before: by
    something else each time, and mostly before it has regained its steps."""
    strike_pairs = st.tuples(strikes("exit", "node-loss"), strikes("signal", "node-loss"))
    return st.builds(
        _struggle, first_s=st.integers(15, 40), sooner_s=st.integers(7, 12), pairs=st.lists(strike_pairs, max_size=3)
    )


def _struggle(*, first_s: int, sooner_s: int, pairs: list[tuple[Mishap, Mishap]]) -> list[Mishap]:
    waits_s = [first_s, *range(sooner_s, 0, -1)]
    mishaps = [mishap for pair in pairs for mishap in pair]
    return [each for wait_s, mishap in zip(waits_s, mishaps, strict=False) for each in (_wait(wait_s), mishap)]


def shortages() -> st.SearchStrategy[list[Mishap]]:
    """So many machines are away for two minutes that most runs are short of nodes."""
    return st.builds(_shortage, first_s=st.integers(5, 30), num_lost=st.integers(1, MAX_NODES))


def _shortage(*, first_s: int, num_lost: int) -> list[Mishap]:
    lost = [Strike(kind="node-loss", order=order, repair_us=120 * SECOND_US) for order in range(num_lost)]
    return [_wait(first_s), *lost, _wait(60)]


def silences() -> st.SearchStrategy[list[Mishap]]:
    """Agents that say nothing for longer than any limit of these runs, one after the other."""
    frozen = st.builds(
        Strike, kind=st.just("freeze"), order=st.integers(0, MAX_NODES - 1), repair_us=st.just(120 * SECOND_US)
    )
    return st.builds(
        lambda first_s, strikes_: [each for strike in strikes_ for each in (_wait(first_s), strike, _wait(10))],
        st.integers(3, 30),
        st.lists(frozen, min_size=1, max_size=3),
    )


def calms() -> st.SearchStrategy[list[Mishap]]:
    """Nothing but the channel is bad, for long enough that short runs come to their end under it."""
    return st.lists(waits(), max_size=2).map(lambda some: [_wait(45), *some])


def _wait(for_s: int) -> Mishap:
    return Wait(for_us=for_s * SECOND_US)


def _history(*, first: int, pairs: list[tuple[Mishap, Mishap]]) -> list[Mishap]:
    return [Wait(for_us=first * SECOND_US), *(mishap for pair in pairs for mishap in pair)]
