"""Where the time went, in whole microseconds x ranks, and one row per fault. The buckets add up exactly.

A pure fold beside the brain's: it looks at every fact with the observation before and after it, and books the time
since it last booked. No bucket is a remainder: each span is booked for what happened in it.

- `useful`: to the completion of steps that no earlier attempt had completed.
- `recomputed`: from restored to the former best step; a span that crosses it is split along the line of steps. And
  work behind the last reported step that a fault destroyed: it is done again too.
- `checkpoint_stall`: what ranks spent blocked in saves, committed or given up, taken out of the two above; and the wait
  for the last save.
- `detect`: from the last sign of health before the fault (see `FaultRow.at_us`) to the first decision about it.
- `restart`: from the decision to every worker up; `restore`: from there to every rank restored.
- `idle`: before the first gang was up, while nodes were waited for, while the run was closed, and while nobody led it.

Neighbour: `behemoth.app`, which prints it. It must not be read by a decision.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from behemoth.base.ids import NodeId, Rank, Step
from behemoth.state.effect import Close, Evict, Start
from behemoth.state.evidence import Decided, Evidence
from behemoth.state.observation import Cause, Incident, Observation

MAX_ROWS = 1_000

Mode = Literal["idle", "restart", "restore", "train", "finish", "detect"]
"""What the gang is doing since `mark_us`; `detect`: a fault was told in a state that was no training."""


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds summed over ranks."""

    useful: int = 0
    checkpoint_stall: int = 0
    detect: int = 0
    restart: int = 0
    restore: int = 0
    recomputed: int = 0
    idle: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))


class FaultRow(msgspec.Struct, frozen=True, kw_only=True):
    """One fault and the way back; times in us, None for what has not happened (or never did: the next fault came)."""

    cause: Cause
    node: NodeId | None
    rank: Rank | None
    reason: str
    at_us: int
    """First sign: the last step that the gang, or the rank that failed, completed before it; of a silent node its last
    beat."""
    detected_us: int
    started_us: int | None = None
    """When the next attempt was started; later than detected when a node had to be waited for."""
    restarted_us: int | None = None
    restored_us: int | None = None
    first_step_us: int | None = None
    regained_us: int | None = None
    best_step: Step
    """The step to regain."""


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Booked up to `mark_us`; `books` gives the buckets up to any later time."""

    num_ranks: int
    opened_us: int
    mark_us: int
    mode: Mode = "idle"
    booked: Buckets = Buckets()
    has_run: bool = False
    """Whether a gang was ever up: before that, starting is idle."""
    step: Step = Step(0)
    """Step of the last progress that was booked."""
    goal_step: Step = Step(0)
    """Steps up to here are repeated."""
    stall_us: int = 0
    """Stall of this attempt, as last reported."""
    away_us: tuple[int, int] = (0, 0)
    """From the last word of the former term to the begin of this one."""
    faults: tuple[FaultRow, ...] = ()
    num_faults: int = 0
    """Rows ever written; the oldest of more than MAX_ROWS are dropped."""


def open_ledger(obs: Observation) -> Ledger:
    """An empty ledger from the time that the run was opened."""
    return Ledger(num_ranks=obs.num_ranks, opened_us=obs.opened_us, mark_us=obs.opened_us)


def book(ledger: Ledger | None, before: Observation | None, evidence: Evidence, after: Observation) -> Ledger:
    """The ledger after `evidence` turned `before` into `after`; call it for every fact, Decided included.

    A run that was just opened has no ledger and none before: both are None then.
    """
    if ledger is None or before is None:
        return open_ledger(after)
    if isinstance(evidence, Decided):
        return _book_decided(ledger, before, evidence, after)
    if after.epoch != before.epoch:
        ledger = replace(ledger, away_us=(before.now_us, after.now_us))
    if after.progress is not before.progress and after.gang == "training":
        return _book_progress(ledger, before, after)
    if after.gang == before.gang:
        return _book_shortage(ledger, before, after)
    match after.gang:
        case "restoring":
            ledger = _book_to(ledger, after.now_us, "restore")
            return _note(replace(ledger, has_run=True), restarted_us=after.now_us)
        case "finished":
            return replace(ledger, mode="finish")
        case _:
            return ledger


def books(ledger: Ledger, now_us: int) -> Buckets:
    """The buckets up to `now_us`; their total is (now - opened) x ranks, exactly. An open span of training counts as
    what it would be if a step were completed now."""
    return _book_to(ledger, max(now_us, ledger.mark_us), ledger.mode).booked


def _book_to(ledger: Ledger, now_us: int, mode: Mode) -> Ledger:
    """Book the span since the mark under the present mode, and go on in `mode`."""
    span = max(0, now_us - ledger.mark_us) * ledger.num_ranks
    booked = ledger.booked
    match ledger.mode:
        case "idle":
            booked = replace(booked, idle=booked.idle + span)
        case "restart" if not ledger.has_run:
            booked = replace(booked, idle=booked.idle + span)
        case "restart":
            booked = replace(booked, restart=booked.restart + span)
        case "restore":
            booked = replace(booked, restore=booked.restore + span)
        case "finish":
            booked = replace(booked, checkpoint_stall=booked.checkpoint_stall + span)
        case "detect":
            booked = replace(booked, detect=booked.detect + span)
        case "train" if ledger.step < ledger.goal_step:
            booked = replace(booked, recomputed=booked.recomputed + span)
        case "train":
            booked = replace(booked, useful=booked.useful + span)
    return replace(ledger, booked=booked, mark_us=max(now_us, ledger.mark_us), mode=mode)


def _book_progress(ledger: Ledger, before: Observation, after: Observation) -> Ledger:
    progress = after.progress
    if progress is None:
        return ledger
    if before.gang != "training":
        restored = _book_to(ledger, after.now_us, "train")
        restored = replace(restored, has_run=True, step=progress.step, stall_us=0, goal_step=before.best_step)
        restored = _note(restored, restarted_us=after.now_us, restored_us=after.now_us)
        has_stepped = progress.phase != "first_step"
        restored = _note(restored, first_step_us=after.now_us) if has_stepped else restored
        is_regained = has_stepped and progress.step >= restored.goal_step
        return _note(restored, regained_us=after.now_us) if is_regained else restored
    if progress.step == ledger.step or progress.at_us < ledger.mark_us:
        return ledger
    return _book_steps(ledger, step=progress.step, at_us=progress.at_us, stall_us=progress.stall_us)


def _book_steps(ledger: Ledger, *, step: Step, at_us: int, stall_us: int) -> Ledger:
    """Book a span of completed steps: stall first, the rest recomputed up to the former best, useful beyond."""
    span = (at_us - ledger.mark_us) * ledger.num_ranks
    stall = min(max(0, stall_us - ledger.stall_us), span)
    num_repeated = min(max(0, ledger.goal_step - ledger.step), step - ledger.step)
    recomputed = (span - stall) * num_repeated // (step - ledger.step)
    booked = replace(
        ledger.booked,
        checkpoint_stall=ledger.booked.checkpoint_stall + stall,
        recomputed=ledger.booked.recomputed + recomputed,
        useful=ledger.booked.useful + span - stall - recomputed,
    )
    regained_us = at_us - (at_us - ledger.mark_us) * (step - ledger.step - num_repeated) // (step - ledger.step)
    ledger = replace(ledger, booked=booked, mark_us=at_us, step=step, stall_us=max(stall_us, ledger.stall_us))
    ledger = _note(ledger, first_step_us=at_us)
    if step < ledger.goal_step or not ledger.faults:
        return ledger
    first_step_us = ledger.faults[-1].first_step_us or regained_us
    return _note(ledger, regained_us=max(first_step_us, regained_us))


def _book_shortage(ledger: Ledger, before: Observation, after: Observation) -> Ledger:
    """A fault in a gang that was not training begins its detection; nodes that come end the wait."""
    if before.incident is None and after.incident is not None and ledger.mode in ("restart", "restore"):
        return _book_to(_without_pause(ledger, after.incident), after.now_us, "detect")
    return ledger


def _book_decided(ledger: Ledger, before: Observation, decided: Decided, after: Observation) -> Ledger:
    now_us = after.now_us
    if any(isinstance(effect, Close) for effect in decided.effects):
        return _book_close(ledger, before, after)
    if any(isinstance(effect, Start) for effect in decided.effects):
        ledger = _book_to(_in_detection(ledger, before), now_us, "restart")
        return _with_row(ledger, before, before.incident, now_us) if before.incident is not None else ledger
    is_waiting = after.incident is not None and after.waiting_since_us is not None
    if is_waiting and ledger.mode != "idle" and any(isinstance(effect, Evict) for effect in decided.effects):
        return _book_to(_in_detection(ledger, before), now_us, "idle")
    return ledger


def _in_detection(ledger: Ledger, before: Observation) -> Ledger:
    """What is still unbooked of a training that met a fault: to the fault's first sign it was work that nobody has
    reported, so that it is done again; from there on it went into noticing the fault."""
    incident = before.incident
    if incident is None or ledger.mode not in ("train", "finish"):
        return ledger
    ledger = _without_pause(ledger, incident)
    return replace(_book_lost(ledger, incident.at_us), mode="detect")


def _book_lost(ledger: Ledger, until_us: int) -> Ledger:
    """Book under the present mode, but training as work that is done again: nobody reported it."""
    until_us = max(ledger.mark_us, until_us)
    if ledger.mode != "train":
        return _book_to(ledger, until_us, ledger.mode)
    lost = (until_us - ledger.mark_us) * ledger.num_ranks
    return replace(ledger, booked=replace(ledger.booked, recomputed=ledger.booked.recomputed + lost), mark_us=until_us)


def _without_pause(ledger: Ledger, incident: Incident) -> Ledger:
    """Between two terms that no agent outlived nobody ran: the time from the last word of the one is idle."""
    if incident.cause != "coordinator" or not ledger.mark_us <= ledger.away_us[0] < ledger.away_us[1]:
        return ledger
    begin_us, end_us = ledger.away_us
    ledger = _book_lost(ledger, begin_us)
    idle = (end_us - begin_us) * ledger.num_ranks
    return replace(ledger, booked=replace(ledger.booked, idle=ledger.booked.idle + idle), mark_us=end_us)


def _book_close(ledger: Ledger, before: Observation, after: Observation) -> Ledger:
    if ledger.mode == "train" and before.incident is None:
        ledger = replace(ledger, mode="finish")
    ledger = _book_to(_in_detection(ledger, before), after.now_us, "idle")
    if before.incident is None or after.outcome != "failed":
        return ledger
    return _with_row(ledger, before, before.incident, None)


def _with_row(ledger: Ledger, before: Observation, incident: Incident, started_us: int | None) -> Ledger:
    row = FaultRow(
        cause=incident.cause,
        node=incident.node,
        rank=incident.rank,
        reason=incident.reason,
        at_us=incident.at_us,
        detected_us=incident.decided_us if incident.decided_us is not None else before.now_us,
        started_us=started_us,
        best_step=before.best_step,
    )
    faults = (*ledger.faults, row)[-MAX_ROWS:]
    return replace(ledger, faults=faults, num_faults=ledger.num_faults + 1)


def _note(ledger: Ledger, **times_us: int) -> Ledger:
    """Set times of the newest fault that are not set yet; a row whose attempt never began has none to set."""
    if not ledger.faults or ledger.faults[-1].started_us is None:
        return ledger
    row = ledger.faults[-1]
    news = {name: at_us for name, at_us in times_us.items() if getattr(row, name) is None}
    return replace(ledger, faults=(*ledger.faults[:-1], replace(row, **news))) if news else ledger
