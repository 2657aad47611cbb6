"""What a simulated run came to: the brain's own ledger, counts, and how long the brain took, as one value.

It reads and computes nothing that the brain did not book. Neighbour: `tests/bench/simulate.py`, which prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from behemoth.base.errors import Internal
from behemoth.reconcile.ledger import Buckets, books
from behemoth.simulation.faults import FaultKind
from behemoth.simulation.scenario import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One simulated run. `buckets` add up to `wall_us` x ranks exactly."""

    wall_us: int
    num_ranks: int
    buckets: Buckets
    num_faults: Mapping[FaultKind, int]
    num_attempts: int
    num_committed: int
    num_events: int
    """Events of the simulation that were executed."""
    num_folded: int
    num_decided: int
    num_refused: int

    @property
    def effective_share(self) -> float:
        """Effective training time ratio by the ledger: first-time steps' share of wall time x ranks of the gang. Spares
        are not in it."""
        return self.buckets.useful / (self.wall_us * self.num_ranks)


def report_of(simulation: Simulation) -> Report:
    """Raises Internal when the run was never opened, or when the ledger does not close."""
    body, observation = simulation.body, simulation.body.observation
    if observation is None or body.ledger is None:
        raise Internal("report: expected a run that was opened, got none")
    buckets = books(body.ledger, simulation.agenda.now_us)
    wall_us = simulation.agenda.now_us - observation.opened_us
    if buckets.total != wall_us * observation.num_ranks:
        raise Internal(
            f"ledger: expected {wall_us} us x {observation.num_ranks} ranks, got buckets of {buckets.total} us"
        )
    return Report(
        wall_us=wall_us,
        num_ranks=observation.num_ranks,
        buckets=buckets,
        num_faults=dict(simulation.weather.counts),
        num_attempts=observation.attempt,
        num_committed=simulation.cluster.store.num_committed,
        num_events=simulation.agenda.num_events,
        num_folded=body.num_folded,
        num_decided=body.num_decided,
        num_refused=simulation.cluster.num_refused,
    )


def quantile_us(samples_ns: Sequence[int], share: float) -> float:
    """The sample below which `share` of all lie, in microseconds. Raises ValueError when there is none."""
    if not samples_ns:
        raise ValueError("quantile: expected at least one sample, got none")
    ordered = sorted(samples_ns)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1_000
