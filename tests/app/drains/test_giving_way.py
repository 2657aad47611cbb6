"""A drain waits while a save is written, on its way from the coordinator's loop to the process that copies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from app.drains.test_drainer import FakeLink, draining
from app.drains.test_process import SETTINGS, own, saved, steps_of
from behemoth.agent.child import Child
from behemoth.app.drains.giving_way import GivingWay
from behemoth.app.drains.link import ProcessLink
from behemoth.app.drains.messages import TO_DRAIN, Drain, Drained, GiveWay, received, send
from behemoth.app.drains.process import drain_one
from behemoth.base.errors import Unavailable
from behemoth.ports import Into
from behemoth.state.evidence import SaveFailed, Tick
from behemoth.testing.store import MemoryStore
from reconcile.player import training

LIMIT_S = 30


class Watched(GivingWay):
    """Says when somebody comes to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()

    def wait(self) -> None:
        self.is_asked.set()
        super().wait()


class Counted(MemoryStore):
    num_reads = 0

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self.num_reads += "/c" in key
        super().read_into(key, offset_bytes=offset_bytes, into=into)


def test_nothing_of_an_array_is_read_while_a_save_is_written() -> None:
    above, below, way = Counted(), MemoryStore(), Watched()
    own(below)
    ref = saved(above, 1)
    way.tell(True)
    copying = threading.Thread(target=drain_one, args=(SETTINGS, above, below, ref), kwargs={"way": way})
    copying.start()
    assert way.is_asked.wait(LIMIT_S)
    assert above.num_reads == 0
    way.tell(False)
    copying.join(LIMIT_S)
    assert steps_of(below) == [1]
    assert above.num_reads > 0


def test_a_save_that_takes_too_long_holds_nothing_up_any_more() -> None:
    now = [100.0]
    way = GivingWay(limit_s=60.0, now=lambda: now[0])
    way.tell(True)
    now[0] += 60.0
    way.wait()
    way.tell(True)  # the next one has as long again
    waiting = threading.Thread(target=way.wait)
    waiting.start()
    way.tell(False)
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()


def test_a_drain_gives_way_from_when_the_gang_stands_at_a_saves_step_until_it_is_over() -> None:
    link = FakeLink()
    player = training()
    with draining(link) as (drainer, _):
        for end in ("commit", "failure"):
            player.reach(player.save.step - 1)
            drainer.witness(Tick(), None, player.obs)
            assert link.ways.count(True) == link.ways.count(False)
            player.reach(player.save.step)
            drainer.witness(Tick(), None, player.obs)
            drainer.witness(Tick(), None, player.obs)
            assert link.ways.count(True) == link.ways.count(False) + 1
            if end == "commit":
                player.commit()
            else:
                player.tell(SaveFailed(write_id=player.save.write_id, reason="no space"))
            drainer.witness(Tick(), None, player.obs)
            assert link.ways.count(True) == link.ways.count(False)
    assert link.ways == [True, False, True, False]


class FakeChild:
    """A process of which this test is the other end."""

    def __init__(self) -> None:
        self.sock, self.theirs = socket.socketpair()
        self.is_ended = threading.Event()

    def end(self) -> None:
        self.is_ended.set()
        self.theirs.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.end()
        self.sock.close()


@contextmanager
def asked() -> Iterator[tuple[ProcessLink, FakeChild, list[object]]]:
    """A link with a drain under way, and what comes of it."""
    child, came = FakeChild(), list[object]()
    link = ProcessLink(SETTINGS, start=lambda: cast(Child, child))
    link.give_way(True)  # before there is a process

    def drain() -> None:
        try:
            came.append(link.drain(saved(MemoryStore(), 1)))
        except Unavailable as error:
            came.append(error)

    draining = threading.Thread(target=drain)
    draining.start()
    try:
        yield link, child, came
    finally:
        draining.join(LIMIT_S)
        link.close()
        child.theirs.close()


def test_a_process_hears_of_saves_at_its_begin_and_between_its_orders() -> None:
    with asked() as (link, child, came):
        heard = received(child.theirs, TO_DRAIN)
        assert next(heard) == SETTINGS
        assert next(heard) == GiveWay(is_saving=True)
        assert isinstance(next(heard), Drain)
        link.give_way(False)
        assert next(heard) == GiveWay(is_saving=False)
        send(child.theirs, Drained(num_bytes=1, seconds=1.0))
    assert came == [Drained(num_bytes=1, seconds=1.0)]


def test_a_process_that_reads_nothing_is_ended_and_never_waited_for() -> None:
    with asked() as (link, child, came):
        heard = received(child.theirs, TO_DRAIN)
        assert [type(next(heard)).__name__ for _ in range(3)] == ["Settings", "GiveWay", "Drain"]
        for _ in range(1_000_000):
            if child.is_ended.is_set():
                break
            link.give_way(True)
        assert child.is_ended.is_set()
    assert isinstance(came[0], Unavailable)


@pytest.mark.parametrize("is_saving", [True, False])
def test_the_word_survives_the_wire(is_saving: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, GiveWay(is_saving=is_saving))
        assert next(received(theirs, TO_DRAIN)) == GiveWay(is_saving=is_saving)
