"""The loop of a real body: what is durable before what, and what wakes it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from behemoth.base.ids import Epoch
from behemoth.reconcile import loop as module
from behemoth.reconcile.decide import decide
from behemoth.reconcile.journal import Line, decode_lines, replay
from behemoth.reconcile.loop import Loop
from behemoth.state.effect import Effect
from behemoth.state.evidence import Asked, CommitsFound, Decided, Evidence, RunOpened, TermBegan, Tick
from behemoth.state.observation import Observation
from reconcile.player import S, config, training

LIMIT_S = 30.0
OPENING = (RunOpened(config=config()), TermBegan(epoch=Epoch(1)), CommitsFound(commits=()))
STOP = Asked(request="stop")


class World:
    """Clock, journal and body in one, which write down what happened, in order."""

    def __init__(self) -> None:
        self.time_us = S
        self.num_turns = 0
        self.journal = b""
        self.happened: list[tuple[str, Any]] = []
        self.tell: Callable[[Evidence], None]
        self.on_apply: Callable[[], None] = lambda: None
        self.on_look: Callable[[], None] = lambda: None

    def now_us(self) -> int:
        self.num_turns += 1
        return self.time_us

    def append(self, line: bytes) -> None:
        self.journal += line
        (told,) = decode_lines(line)
        assert isinstance(told, Line)
        self.happened.append(("append", told))

    def sync(self) -> None:
        self.happened.append(("sync", None))

    def look(self) -> Tick:
        self.happened.append(("look", self.time_us))
        self.on_look()
        return Tick()

    def apply(self, effect: Effect) -> None:
        self.happened.append(("apply", effect))
        self.on_apply()

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        self.happened.append(("witness", (evidence, before, after)))

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.happened if name == kind]

    def stop(self) -> None:
        self.tell(STOP)


def play(world: World, *facts: Evidence, observation: Observation | None = None) -> Observation:
    """The loop from these facts to the end of the run, which `world` must bring about."""

    async def run() -> Observation:
        loop = Loop(clock=world, journal=world, body=world, observation=observation)
        world.tell = loop.tell
        for fact in facts:
            loop.tell(fact)
        async with asyncio.timeout(LIMIT_S):
            return await loop.run()

    return asyncio.run(run())


def decisions_of(world: World) -> list[tuple[Effect, ...]]:
    return [line.evidence.effects for line in world.of("append") if isinstance(line.evidence, Decided)]


def test_what_was_decided_is_durable_before_anything_of_it_is_applied_in_its_order() -> None:
    world = World()
    world.on_apply = world.stop
    assert play(world, *OPENING).outcome == "cancelled"
    decisions = decisions_of(world)
    assert [len(effects) for effects in decisions] == [3, 1]  # a Provision for each node, and the Close
    expected: list[str] = []
    for effects in decisions:
        expected += ["append", "witness", "sync", *["apply"] * len(effects)]
        expected += ["append", "witness"] * 3 if len(effects) == 3 else []  # it was asked to stop at each of them
    assert [name for name, _ in world.happened] == ["append", "witness"] * 3 + expected
    assert [effect for effects in decisions for effect in effects] == world.of("apply")


def test_a_process_that_dies_while_it_applies_leaves_a_journal_of_all_that_it_had_decided() -> None:
    world = World()

    def die() -> None:
        raise MemoryError

    world.on_apply = die
    with pytest.raises(MemoryError):
        play(world, *OPENING)
    assert len(world.of("apply")) == 1
    left = replay(decode_lines(world.journal))
    assert left is not None
    assert decide(left).effects == ()


def test_every_fact_is_witnessed_in_order_with_what_was_known_before_and_after_it() -> None:
    world = World()
    world.on_apply = world.stop
    closed = play(world, *OPENING)
    told = world.of("witness")
    assert [evidence for evidence, _, _ in told[:3]] == list(OPENING)
    assert told[0][1] is None
    assert all(after is before for (_, _, after), (_, before, _) in pairwise(told))
    assert told[-1][2] is closed
    assert [line.evidence for line in world.of("append")] == [evidence for evidence, _, _ in told]
    assert {line.now_us for line in world.of("append")} == {S}


def test_a_new_run_waits_for_its_first_fact_and_news_of_another_thread_wake_it() -> None:
    world = World()

    def begin() -> None:
        for fact in OPENING:
            world.tell(fact)

    def stop() -> None:
        telling.join(LIMIT_S)
        world.stop()

    telling = threading.Timer(0.05, begin)
    world.on_apply = stop

    async def run() -> Observation:
        loop = Loop(clock=world, journal=world, body=world, observation=None)
        world.tell = loop.tell
        telling.start()
        async with asyncio.timeout(LIMIT_S):
            return await loop.run()

    assert asyncio.run(run()).outcome == "cancelled"
    assert world.of("look") == []


def test_it_sleeps_until_the_time_that_was_decided_and_asks_the_body_what_that_silence_means() -> None:
    player, world = training(), World()
    wake_at_us = decide(player.obs).wake_at_us
    assert wake_at_us is not None
    world.time_us = wake_at_us - S // 20

    def look() -> None:
        world.time_us = wake_at_us
        world.stop()

    world.on_look = look
    assert play(world, observation=player.obs).outcome == "cancelled"
    assert world.of("look") == [wake_at_us - S // 20]
    assert [line.evidence for line in world.of("append")][:2] == [STOP, Tick()]
    assert world.num_turns == 3  # two turns, and the sleep between them


def test_it_asks_at_once_when_that_time_has_passed_while_it_applied() -> None:
    world = World()

    def apply() -> None:
        world.time_us = 1_000_000 * S

    world.on_apply, world.on_look = apply, world.stop
    assert play(world, *OPENING).outcome == "cancelled"
    assert len(world.of("look")) == 1


@pytest.mark.parametrize("facts", [OPENING[:1], OPENING], ids=["no time was decided", "it is far"])
def test_it_never_sleeps_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch, facts: tuple[Evidence, ...]) -> None:
    """A clock that jumps would put it to sleep for ever."""
    monkeypatch.setattr(module, "MAX_SLEEP_S", 0.01)
    world = World()

    def look() -> None:
        for fact in (*OPENING[len(facts) :], STOP):
            world.tell(fact)

    world.on_look = look
    assert play(world, *facts).outcome == "cancelled"
    assert len(world.of("look")) == 1
