"""A pull gives way to saves, keeps to its rate, and can be given up while it waits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from agent.fake_pace import FakePace
from agent.peers.staged import LAYOUT, staged_rank
from behemoth.agent import pace
from behemoth.agent.memories import Memories
from behemoth.agent.pulling import Pulling
from behemoth.agent.storewire import Pull, Pulled
from behemoth.base.errors import Conflict
from behemoth.base.ids import Rank, Slot, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.plan import plan_rank

PLAN = plan_rank(LAYOUT, Rank(0))
ORDER = Pull(job=1, rank=Rank(0), layout=LAYOUT.encode(), slot=Slot(2), write_id=WriteId("a1-1"), step=Step(7))


class Ward:
    """Rank 0's memory on another node, without a wire in between."""

    def __init__(self) -> None:
        self.memories = Memories(num_ranks=1)
        self.rank = staged_rank(self.memories)
        self.content = self.rank.save(0, "a1-1", 7)
        self.num_reads = 0

    def crcs(self) -> list[int]:
        return [int(crc) for crc in self.rank.arena.crcs(0)]

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        self.num_reads += 1
        into[:] = self.content[offset_bytes : offset_bytes + len(into)]


@pytest.fixture
def ward() -> Iterator[Ward]:
    ward = Ward()
    yield ward
    ward.rank.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each pause; none is slept."""
    fake = FakePace()
    monkeypatch.setattr(pace, "time", fake)
    return fake.slept


def pull(
    ward: Ward,
    *,
    is_writing: Callable[[], bool] = lambda: False,
    cancelled: Callable[[], bool] = lambda: False,
    rate: int | None = None,
) -> Pulled:
    fd = os.memfd_create("copy", os.MFD_ALLOW_SEALING)
    try:
        pulling = Pulling(Memories(num_ranks=1), peer=lambda *_: ward, is_writing=is_writing, rate_bytes_per_s=rate)
        done = pulling.pull(ORDER, fd, cancelled=cancelled)
        copy = Arena.open(fd)
        assert [(one.write_id, one.is_verified) for one in copy.held()] == [("a1-1", True)]
        assert pulling.pull(ORDER, fd, cancelled=cancelled) == Pulled(job=1, num_bytes=0)  # it has it
        return done
    finally:
        os.close(fd)


def test_a_pull_waits_while_a_save_is_written(ward: Ward, slept: list[float]) -> None:
    looks = itertools.chain([True, True, True], itertools.repeat(False))
    assert pull(ward, is_writing=lambda: next(looks)) == Pulled(job=1, num_bytes=PLAN.data_bytes)
    assert slept.count(pace.LOOK_S) == 3


def test_saves_without_an_end_do_not_keep_a_copy_from_coming_about(ward: Ward, slept: list[float]) -> None:
    pull(ward, is_writing=lambda: True)
    assert sum(slept) == pytest.approx(pace.LONGEST_GIVING_WAY_S, abs=2 * pace.LOOK_S)


def test_a_pull_keeps_to_its_rate(ward: Ward, slept: list[float]) -> None:
    rate = PLAN.data_bytes // 4
    pull(ward, rate=rate)
    burst_s = 1.0
    assert sum(slept) == pytest.approx(PLAN.data_bytes / rate - burst_s)


def test_a_pull_that_waits_is_given_up_at_the_next_look(ward: Ward, slept: list[float]) -> None:
    with pytest.raises(Conflict, match="copy of rank 0: cancelled"):
        pull(ward, rate=1, cancelled=lambda: len(slept) >= 5)
    assert (len(slept), ward.num_reads) == (5, 0)
