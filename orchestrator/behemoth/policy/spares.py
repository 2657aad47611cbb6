"""Which spare goes in, what a strike weighs, and how often a lost node is asked for again.

Pure, in whole numbers, so that a replay decides the same on every machine. Neighbour: `placement`, for the first gang.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from behemoth.base.ids import NodeId
from behemoth.state.observation import Node

DAY_US = 86_400_000_000
STRIKE_MICRO = 1_000_000
HALF_LIFE_US = 7 * DAY_US
"""design/recovery.md: "strikes decay (half-life 7 d)"."""
LIMIT_MICRO = 1_500_000
"""Two strikes within one half-life: the first has decayed to no less than a half when the second falls."""
PROBATION_US = DAY_US
"""design/recovery.md: a returned node is "for 24 h used last, after all other spares" (22 % fail again by then)."""
_FIRST_BACKOFF_US = 1_000_000
_MAX_BACKOFF_US = 3_600_000_000


def strikes_micro(node: Node, *, now_us: int) -> int:
    """The node's strikes as of now, in millionths: halved per half-life, linear between."""
    if node.strikes_micro == 0:
        return 0
    age_us = max(0, now_us - node.struck_us)
    halvings, rest_us = divmod(age_us, HALF_LIFE_US)
    return (node.strikes_micro >> min(halvings, 64)) * (2 * HALF_LIFE_US - rest_us) // (2 * HALF_LIFE_US)


def is_struck_out(node: Node, *, now_us: int) -> bool:
    """Whether one more strike now takes the node out of the gang."""
    return strikes_micro(node, now_us=now_us) + STRIKE_MICRO >= LIMIT_MICRO


def best_spares(spares: Iterable[tuple[NodeId, Node]], *, count: int, now_us: int) -> list[NodeId]:
    """The best `count` spares: those on probation last, then by strikes, then in the order of the run file."""

    def rank(entry: tuple[NodeId, Node]) -> tuple[bool, int, int]:
        node = entry[1]
        is_on_probation = node.returned_us is not None and now_us - node.returned_us < PROBATION_US
        return is_on_probation, strikes_micro(node, now_us=now_us), node.order

    return [name for name, _ in heapq.nsmallest(count, spares, key=rank)]


def patience_us(num_refusals: int, *, start_us: int) -> int:
    """How long an ordered agent may take to join: the limit of a start, doubled with each that did not, up to a day.

    A machine in repair or an order in a queue looks like an agent that hangs; asking every hour would not help either.
    """
    return max(start_us, min(start_us << min(num_refusals, 32), DAY_US))


def backoff_us(num_refusals: int) -> int:
    """How long to wait before the node's next agent is ordered, after so many that did not join.

    Doubles up to an hour and is never infinite: repairs take days, and a run that can go on must not give up a node.
    """
    if num_refusals == 0:
        return 0
    return min(_FIRST_BACKOFF_US << min(num_refusals - 1, 32), _MAX_BACKOFF_US)
