"""What breaks, when, and for how long: a Poisson stream of faults over all nodes, with heavy-tailed repairs.

Rates and repair times are published ones (below); the mix of kinds is an assumption and says so. Everything comes from
one seeded `random.Random`. It breaks the `Cluster` and tells nobody: what is known of a fault, the model reports.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Literal, assert_never, get_args

from behemoth.base.ids import NodeId, Rank
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.cluster import Cluster

FaultKind = Literal["exit", "signal", "node-loss", "freeze", "hang"]

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
LLAMA3_RATE = 3.79
"""Faults per 1,000 node-days: Llama 3 on 16,384 H100, 419 unexpected interruptions in 54 days."""
RSC1_RATE = 6.5
"""Faults per 1,000 node-days: Meta's RSC-1 (Revisiting Reliability)."""
REPAIR_MEDIAN_US = 20 * HOUR_US
REPAIR_MEAN_US = 133 * HOUR_US
"""StepFun's trace: median 20 h, mean 133 h; a lognormal has both with sigma^2 = 2 ln(mean / median)."""
SIGKILL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultModel:
    """Rates and weights. The default mix is assumed, not measured: about a third of all faults cost the node."""

    faults_per_1000_node_days: float = LLAMA3_RATE
    weights: dict[FaultKind, float] = field(
        default_factory=lambda: {"exit": 0.2, "signal": 0.35, "node-loss": 0.3, "freeze": 0.05, "hang": 0.1}
    )
    repair_median_us: int = REPAIR_MEDIAN_US
    repair_mean_us: int = REPAIR_MEAN_US
    burst: float = 0.0
    """Probability that a lost node takes its neighbour with it, and that one the next: a switch, a power line."""

    def __post_init__(self) -> None:
        if self.repair_mean_us < self.repair_median_us:
            raise ValueError(
                f"repair: expected a mean >= the median of {self.repair_median_us} us, got {self.repair_mean_us} us"
            )

    def repair_us(self, rng: Random) -> int:
        """One repair time, at least a microsecond."""
        sigma = math.sqrt(2 * math.log(self.repair_mean_us / self.repair_median_us))
        return max(1, round(rng.lognormvariate(math.log(self.repair_median_us), sigma)))

    def gap_us(self, rng: Random, num_nodes: int) -> int:
        """Time to the next fault anywhere among `num_nodes`."""
        per_us = self.faults_per_1000_node_days * num_nodes / 1_000 / DAY_US
        return max(1, round(rng.expovariate(per_us)))


class Weather:
    """Breaks a cluster as the model says, from `begin` until `end`. `counts` holds what took effect, by kind."""

    def __init__(self, *, model: FaultModel, cluster: Cluster, agenda: Agenda, rng: Random) -> None:
        self.counts: Counter[FaultKind] = Counter()
        self._model = model
        self._cluster = cluster
        self._agenda = agenda
        self._rng = rng
        self._nodes = cluster.config.nodes
        self._kinds: list[FaultKind] = list(get_args(FaultKind))
        self._weights = [model.weights.get(kind, 0.0) for kind in self._kinds]
        self._is_on = False

    def begin(self) -> None:
        self._is_on = True
        self._push()

    def end(self) -> None:
        """Faults cease; repairs go on."""
        self._is_on = False

    def _push(self) -> None:
        self._agenda.after(self._model.gap_us(self._rng, len(self._nodes)), self._strike)

    def _strike(self) -> None:
        if not self._is_on:
            return
        [kind] = self._rng.choices(self._kinds, self._weights)
        order = self._rng.randrange(len(self._nodes))
        if strike(self._cluster, kind, self._nodes[order], repair_us=self._model.repair_us(self._rng)):
            self.counts[kind] += 1
        if kind == "node-loss":
            self._burst(order)
        self._push()

    def _burst(self, order: int) -> None:
        while self._rng.random() < self._model.burst and order + 1 < len(self._nodes):
            order += 1
            if strike(self._cluster, "node-loss", self._nodes[order], repair_us=self._model.repair_us(self._rng)):
                self.counts["node-loss"] += 1


def strike(cluster: Cluster, kind: FaultKind, node: NodeId, *, repair_us: int) -> bool:
    """Break `node`, or a rank on it, now. False when there is nothing to break: a dead machine, a spare's ranks.
    `repair_us` is how long a lost machine is away, or a frozen one frozen."""
    machines = cluster.machines
    if not machines.answers(node):
        return False
    match kind:
        case "node-loss":
            machines.lose(node, repair_us)
            return True
        case "freeze":
            machines.freeze(node, repair_us)
            return True
        case "exit" | "signal" | "hang":
            rank = cluster.rank_on(node)
            return rank is not None and _strike_rank(cluster, kind, node, rank)
        case _:
            assert_never(kind)


def _strike_rank(cluster: Cluster, kind: Literal["exit", "signal", "hang"], node: NodeId, rank: Rank) -> bool:
    training = cluster.training
    if not training.is_running():
        return False
    match kind:
        case "exit":
            training.fail_worker(node, rank, exit_code=1, signal=None)
        case "signal":
            training.fail_worker(node, rank, exit_code=None, signal=SIGKILL)
        case "hang":
            training.hang()
        case _:
            assert_never(kind)
    return True
