"""Plays evidence to the brain as a body would, with a clock moved by hand, and keeps what was decided.

Every turn checks what must hold always: deciding again yields nothing, nor does
silence until the time at which the brain wants to be woken; indexes equal a full scan, the ledger closes.
"""

from __future__ import annotations

from typing import Any, TypeVar

from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Step, WriteId
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.reconcile.journal import encode_line
from behemoth.reconcile.ledger import Ledger, book, books
from behemoth.state.config import Cadence, HangFloors, RunConfig, WorkPhase
from behemoth.state.decision import Decision
from behemoth.state.effect import CommitRef, Effect
from behemoth.state.evidence import (
    CommitsFound,
    Committed,
    Decided,
    Evidence,
    GangRestored,
    GangUp,
    Late,
    NodeJoined,
    NodeLost,
    Progress,
    RunOpened,
    SaveArmed,
    SaveStaged,
    SaveWritten,
    TermBegan,
    Tick,
    WorkerFailed,
)
from behemoth.state.observation import Observation, SaveInFlight, indexes_of
from behemoth.testing.silence import effects_of_silence

S = 1_000_000
FLOORS = HangFloors(
    start_us=60 * S, restore_us=60 * S, first_step_us=30 * S, step_us=10 * S, eval_us=60 * S, save_us=60 * S
)
E = TypeVar("E", bound=Effect)


def config(**changes: Any) -> RunConfig:
    """Three nodes of two ranks, two of them in the gang, 100 steps, a save every ten."""
    fields: dict[str, Any] = {
        "run_uid": RunUid("u"),
        "nodes": tuple(NodeId(name) for name in "abc"),
        "num_slots": 2,
        "ranks_per_node": 2,
        "total_steps": Step(100),
        "cadence": Cadence(steps=10),
        "keep_last": 2,
        "keep_every_steps": None,
        "heartbeat_limit_us": 2_500_000,
        "hang_floors": FLOORS,
        "settle_us": S // 2,
        "max_failures": 3,
        "node_wait_us": 600 * S,
        "rejoin_us": 0,
        "save_limit_us": 60 * S,
    }
    return RunConfig(**{**fields, **changes})


class Player:
    """One run. Every method tells something one second later than the last, and returns the effects of that turn."""

    def __init__(self, **changes: Any) -> None:
        self.now_us = 0
        self.maybe_obs: Observation | None = None
        self.ledger: Ledger | None = None
        self.journal = b""
        self.effects: tuple[Effect, ...] = ()
        self.decision: Decision | None = None
        self.tell(RunOpened(config=config(**changes)))

    @property
    def obs(self) -> Observation:
        assert self.maybe_obs is not None
        return self.maybe_obs

    @property
    def save(self) -> SaveInFlight:
        assert self.obs.save is not None
        return self.obs.save

    @property
    def phase(self) -> tuple[str, str]:
        assert self.decision is not None
        return self.decision.status.phase, self.decision.status.reason

    def tell(self, *facts: Evidence, after_us: int = S) -> tuple[Effect, ...]:
        self.now_us += after_us
        for fact in facts:
            self._fold(fact)
        self.decision = decide(self.obs)
        self.effects = self.decision.effects
        if self.effects:
            self._fold(Decided(effects=self.effects))
        self._check()
        return self.effects

    def _fold(self, fact: Evidence) -> None:
        before = self.maybe_obs
        self.journal += encode_line(self.now_us, fact)
        self.maybe_obs = fold(before, fact, self.now_us)
        self.ledger = book(self.ledger, before, fact, self.obs)

    def _check(self) -> None:
        assert self.decision is not None
        assert self.ledger is not None
        assert decide(self.obs).effects == ()
        for name, index in indexes_of(self.obs).items():
            assert getattr(self.obs, name) == index, name
        wall_us = self.now_us - self.obs.opened_us
        assert books(self.ledger, self.now_us).total == wall_us * self.obs.num_ranks
        wake_at_us = self.decision.wake_at_us
        if wake_at_us is not None:
            assert wake_at_us > self.now_us
        assert effects_of_silence(self.obs, wake_at_us) == ()

    def one(self, kind: type[E]) -> E:
        """The only effect of this kind in the last turn."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        assert len(found) == 1, self.effects
        return found[0]

    def has(self, kind: type[Effect]) -> bool:
        return any(isinstance(effect, kind) for effect in self.effects)

    def begin(self, *commits: CommitRef, epoch: int = 1) -> None:
        """A term begins and the store was listed."""
        self.tell(TermBegan(epoch=Epoch(epoch)), CommitsFound(commits=commits))

    def join(self, names: str, incarnation: int = 1, attempt: int = 0) -> tuple[Effect, ...]:
        return self.tell(
            *(NodeJoined(node=NodeId(n), incarnation=incarnation, attempt=Attempt(attempt)) for n in names)
        )

    def train(self, step: int = 0) -> tuple[Effect, ...]:
        """The present attempt comes up and stands restored at `step`."""
        self.tell(GangUp(attempt=self.obs.attempt))
        return self.tell(GangRestored(attempt=self.obs.attempt, step=Step(step), num_from_memory=0))

    def reach(
        self,
        step: int,
        *,
        phase: WorkPhase = "step",
        after_us: int = S,
        promise_us: int | None = None,
        stall_us: int = 0,
    ) -> tuple[Effect, ...]:
        """Progress is told."""
        now_us = self.now_us + after_us
        progress = Progress(
            attempt=self.obs.attempt,
            step=Step(step),
            furthest_step=Step(step),
            at_us=now_us,
            phase=phase,
            phase_since_us=now_us,
            slowest_step_us=S,
            stall_us=stall_us,
            next_report_by_us=promise_us,
        )
        return self.tell(Tick(progress=progress), after_us=after_us)

    def rest(self, after_us: int, late: str = "", since_us: int = 0) -> tuple[Effect, ...]:
        """Time passes; `late` nodes have not beaten since `since_us`."""
        return self.tell(Tick(late=tuple(Late(node=NodeId(n), since_us=since_us) for n in late)), after_us=after_us)

    def commit(self) -> tuple[Effect, ...]:
        """The save in flight goes all the way, and its ranks stand at its step."""
        save, attempt = self.save, self.obs.attempt
        self.reach(save.step)
        self.tell(SaveArmed(attempt=attempt, write_id=save.write_id))
        self.tell(SaveStaged(attempt=attempt, write_id=save.write_id))
        self.tell(SaveWritten(attempt=attempt, write_id=save.write_id))
        return self.tell(Committed(commit=ref(save.step, save.write_id)))

    def fail(
        self,
        node: str = "a",
        *,
        rank: int = 0,
        exit_code: int | None = None,
        signal: int | None = None,
        lines: str = "",
        attempt: int = 0,
        quiet_us: int | None = None,
    ) -> tuple[Effect, ...]:
        return self.tell(
            WorkerFailed(
                node=NodeId(node),
                attempt=Attempt(attempt) if attempt else self.obs.attempt,
                rank=Rank(rank),
                exit_code=exit_code,
                signal=signal,
                last_lines=lines,
                quiet_us=quiet_us,
            )
        )

    def lose(self, *names: str) -> tuple[Effect, ...]:
        nodes = self.obs.nodes
        return self.tell(
            *(NodeLost(node=NodeId(n), incarnation=nodes[NodeId(n)].incarnation, reason="socket closed") for n in names)
        )


def ref(step: int, write_id: str) -> CommitRef:
    return CommitRef(step=Step(step), write_id=WriteId(write_id), size_bytes=1)


def training(**changes: Any) -> Player:
    """A run in its first attempt: restored at step 0, with all nodes there, the first save announced."""
    player = Player(**changes)
    player.begin()
    for name in player.obs.config.nodes:
        player.tell(NodeJoined(node=name, incarnation=1, attempt=Attempt(0)))
    player.train()
    return player
