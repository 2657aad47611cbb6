"""Which generation of a rank's memory a restore may fill."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from behemoth.agent.arenas import Generation, RankMemory
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.session import Declare

FREE = Generation()
GRANTED = Generation("granted", WriteId("a1-3"))
STAGED = Generation("staged", WriteId("a1-2"))
COMMITTED = Generation("committed", WriteId("a1-1"))
IN_USE = Generation("committed", WriteId("a1-1"), is_read=True)
BEING_WRITTEN = Generation("staged", WriteId("a1-2"), is_read=True)


@pytest.mark.parametrize(
    ("generations", "spare"),
    [
        ((COMMITTED, FREE), 1),
        ((GRANTED, COMMITTED), 1),
        ((STAGED, GRANTED), 1),
        ((IN_USE, STAGED), 1),
        ((BEING_WRITTEN, GRANTED), 1),
        ((IN_USE, BEING_WRITTEN), 0),
    ],
    ids=["a free one", "the committed one", "the granted one", "a staged one", "none that is read", "no other"],
)
def test_a_restore_fills_what_is_wanted_least_and_what_is_being_read_last(
    generations: Sequence[Generation], spare: int
) -> None:
    declared = Declare(layout=b"layout", digest="digest", arena_bytes=4096)
    memory = RankMemory(rank=Rank(0), declared=declared, fd=-1, generations=tuple(generations))
    source = memory.source(RestoreFrom(step=Step(0), write_id=WriteId("a0-9")))
    assert (source.held_in, source.spare) == (None, spare)
