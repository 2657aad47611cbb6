"""The places before the store where a rank's snapshot may be, and what a restore got out of them.

Each gives what is still missing and it has (`checkpoint.gathering`). Whatever goes wrong with one is a reason to look
farther, never an error. The neighbour `preparing` puts them in order, the nearest first, and asks the store for the
rest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from behemoth.base.errors import BehemothError, NotFound
from behemoth.checkpoint.gathering import Gathering, SnapshotSource

Tier: TypeAlias = Literal["memory", "peer", "disk"]
"""What kind of place it is: the rank's own memory, another node's, the node's own disk."""

_log = logging.getLogger(__name__)


class SnapshotPlace(NamedTuple):
    """`open` may raise Behemoth's errors, as what it returns may; `failed` is told them. `is_promised`: that a snapshot
    should be there, so that it is worth telling when none is."""

    tier: Tier
    open: Callable[[], SnapshotSource]
    failed: Callable[[BehemothError], None] = lambda _error: None
    is_promised: bool = True


@dataclass(slots=True)
class Taken:
    """The outcome of one restore from places. `missed`: why promised or asked places did not give everything."""

    received_bytes: Counter[Tier] = field(default_factory=Counter)
    givers: set[Tier] = field(default_factory=set)
    missed: list[str] = field(default_factory=list)
    errors: dict[Tier, BehemothError] = field(default_factory=dict)
    """The last one of each kind of place."""

    @property
    def origin(self) -> Tier | Literal["several"]:
        """The tier that a generation without parts from the store came from. A rank that holds nothing counts as
        memory."""
        if not self.givers:
            return "memory"
        (*others, last) = self.givers
        return "several" if others else last


def take_from(places: Iterable[SnapshotPlace], gathering: Gathering) -> Taken:
    """Ask one place after the other, until nothing is missing that any could give."""
    taken = Taken()
    for place in places:
        received_bytes, num_missing = gathering.received_bytes, len(gathering.missing)
        try:
            gathering.take(place.open())
        except BehemothError as error:
            _log.info("not all came from a place of tier %s: %s", place.tier, error.message)
            if place.is_promised or not isinstance(error, NotFound):
                taken.missed.append(error.message)
            taken.errors[place.tier] = error
            place.failed(error)
        taken.received_bytes[place.tier] += gathering.received_bytes - received_bytes
        if len(gathering.missing) < num_missing:
            taken.givers.add(place.tier)
        if gathering.is_settled:
            break
    return taken
