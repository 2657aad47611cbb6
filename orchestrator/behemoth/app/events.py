"""What happened, for people: evidence and decisions as sentences, one line each in `events.jsonl` and on a terminal.

A pure translation. Beats, progress and the steps of a save that went well are not events; the view shows those.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from behemoth.app.restore_book import num_from_store
from behemoth.base.ids import NodeId, Rank
from behemoth.policy.failure import last_line
from behemoth.reconcile.agents import FORMER_TERM_ENDED
from behemoth.state.effect import (
    Abort,
    Close,
    Delete,
    Effect,
    Evict,
    Place,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import (
    Asked,
    Committed,
    Decided,
    Evidence,
    GangMismatched,
    GangRestored,
    NodeJoined,
    NodeLost,
    ProvisionFailed,
    RestoreFailed,
    SaveFailed,
    WorkerFailed,
)
from behemoth.state.observation import Observation

Level = Literal["normal", "warning"]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `reason` is CamelCase and stable, `message` is for people. Times are Unix microseconds."""

    at_us: int
    level: Level
    reason: str
    message: str
    attempt: int
    step: int
    node: NodeId | None = None
    rank: Rank | None = None
    format: int = 1


def events_of(evidence: Evidence, before: Observation | None, after: Observation) -> list[Event]:
    """The events of one folded piece of evidence, in order; usually none."""
    if isinstance(evidence, Decided):
        return [event for effect in evidence.effects for event in _decided(effect, after)]
    if before is None:
        return [_event(after, "RunOpened", f"run of {after.num_ranks} ranks on {after.config.num_slots} nodes")]
    events = [event] if (event := _happened(evidence, before, after)) is not None else []
    if _is_hung(after) and not (_is_hung(before) and before.attempt == after.attempt) and after.incident is not None:
        events.append(_event(after, "Hung", after.incident.reason, level="warning"))
    if _is_beyond_restore(after) and not (_is_beyond_restore(before) and before.attempt == after.attempt):
        events.append(_event(after, "Training", f"attempt {after.attempt} completes steps"))
    return events


def warning(
    reason: str, message: str, *, at_us: int, observation: Observation | None, node: NodeId | None = None
) -> Event:
    """Something that is neither evidence nor a decision: a fault injected on purpose, a damaged commit at the start."""
    if observation is not None:
        return _event(observation, reason, message, level="warning", node=node)
    return Event(at_us=at_us, level="warning", reason=reason, message=message, attempt=0, step=0, node=node)


def _happened(evidence: Evidence, before: Observation, after: Observation) -> Event | None:
    match evidence:
        case NodeJoined(node=node):
            return _event(after, "NodeJoined", f"node {node} joined", node=node)
        case NodeLost(node=node, reason=reason) if after.nodes.get(node) is not before.nodes.get(node):
            return _event(after, "NodeLost", f"node {node} lost: {reason}", level="warning", node=node)
        case ProvisionFailed(node=node, reason=reason):
            message = f"node {node}: no agent could be started: {reason}"
            return _event(after, "ProvisionFailed", message, level="warning", node=node)
        case WorkerFailed() if evidence.attempt == before.attempt:
            return _event(
                after, "WorkerFailed", _failure(evidence), level="warning", node=evidence.node, rank=evidence.rank
            )
        case GangRestored(step=step) if evidence.attempt == before.attempt:
            source = _sources(evidence, after.num_ranks) if after.restore is not None else ""
            return _event(after, "Restored", f"attempt {after.attempt} stands at step {step}{source}")
        case RestoreFailed(write_id=write_id, reason=reason):
            return _event(after, "RestoreFailed", f"checkpoint {write_id}: {reason}", level="warning")
        case GangMismatched(node=node, reason=reason) if evidence.attempt == before.attempt:
            return _event(after, "ProgramRefused", reason, level="warning", node=node)
        case SaveFailed(write_id=write_id, reason=reason):
            return _event(after, "SaveFailed", f"save {write_id} failed: {reason}", level="warning")
        case Committed(commit=commit):
            size = f"{commit.size_bytes / (1 << 20):.1f} MiB"
            return _event(after, "Committed", f"checkpoint of step {commit.step} committed ({size})")
        case Asked(request=request):
            return _event(after, "Asked", f"asked to {request}")
        case _:
            return None


def _sources(told: GangRestored, num_ranks: int) -> str:
    """Where the state of the ranks came from, the nearest place first."""
    from_store, read = num_from_store(told, num_ranks), f"({told.store_bytes / (1 << 20):.1f} MiB read)"
    text = f", {told.num_from_memory} of {num_ranks} ranks from memory"
    if told.num_from_peer:
        text += f", {told.num_from_peer} from a peer's memory"
    if told.num_from_disk:
        text += f", {told.num_from_disk} from the node's own disk"
    if told.num_from_several:
        text += f", {told.num_from_several} from several places"
    if from_store and (told.store_bytes or told.num_from_peer or told.num_from_disk or told.num_from_several):
        text += f", {from_store} from the store {read}"
    elif told.num_from_several and told.store_bytes:
        text += f", partly from the store {read}"
    return text + (f": {told.missed}" if told.missed else "")


def _decided(effect: Effect, after: Observation) -> list[Event]:
    level: Level
    match effect:
        case Place(holders=holders):
            return [_event(after, "Placed", f"gang placed on {', '.join(holders[:8])}{' ...' * (len(holders) > 8)}")]
        case Replace(slot=slot, node=node, spare=spare):
            return [_event(after, "Replaced", f"slot {slot}: node {spare} takes the place of {node}", node=spare)]
        case Evict(reason=reason) if reason == FORMER_TERM_ENDED:
            return []
        case Evict(node=node, reason=reason):
            return [_event(after, "Evicted", f"node {node} evicted: {reason}", level="warning", node=node)]
        case Start(reason=reason):
            return [_event(after, "Starting", f"attempt {effect.fence.attempt}: {reason}")]
        case Stop(reason=reason):
            return [_event(after, "Stopping", f"attempt {effect.fence.attempt} stops: {reason}")]
        case Save(step=step, is_last=True):
            return [_event(after, "LastSave", f"last save announced for step {step}")]
        case Abort(write_id=write_id, reason=reason):
            level = "warning" if after.num_save_failures else "normal"
            return [_event(after, "SaveAborted", f"save {write_id} given up: {reason}", level=level)]
        case Reject(commit=commit, reason=reason):
            message = f"checkpoint of step {commit.step} rejected: {reason}; going back to an older one"
            return [_event(after, "Rejected", message, level="warning")]
        case Delete(commits=commits):
            return [_event(after, "Expired", f"retention drops step {', '.join(str(c.step) for c in commits)}")]
        case Close(outcome=outcome, reason=reason):
            level = "warning" if outcome == "failed" else "normal"
            return [_event(after, f"Run{outcome.capitalize()}", f"run {outcome}: {reason}", level=level)]
        case _:
            return []


def _failure(evidence: WorkerFailed) -> str:
    ended = f"signal {evidence.signal}" if evidence.signal is not None else f"exit code {evidence.exit_code}"
    line = last_line(evidence.last_lines)
    return f"rank {evidence.rank} on node {evidence.node} ended with {ended}" + (f": {line}" if line else "")


def _is_hung(observation: Observation) -> bool:
    return observation.incident is not None and observation.incident.cause == "hang"


def _is_beyond_restore(observation: Observation) -> bool:
    """Whether the present attempt is known to have completed a step of its own. A report, or a save, may tell so."""
    restored = observation.restore.step if observation.restore is not None else 0
    return observation.progress is not None and observation.progress.step > restored


def _event(
    observation: Observation,
    reason: str,
    message: str,
    *,
    level: Level = "normal",
    node: NodeId | None = None,
    rank: Rank | None = None,
) -> Event:
    return Event(
        at_us=observation.now_us,
        level=level,
        reason=reason,
        message=message,
        attempt=observation.attempt,
        step=_last_step(observation),
        node=node,
        rank=rank,
    )


def _last_step(observation: Observation) -> int:
    """The last step that the run is known to stand at: a report may lag behind the commit that proves a later one."""
    reported = observation.progress.step if observation.progress is not None else 0
    return max(reported, observation.commits[-1].step if observation.commits else 0)
