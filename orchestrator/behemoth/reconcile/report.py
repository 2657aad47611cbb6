"""What is so, in words: an Observation as a RunStatus. Pure, O(1); decides nothing."""

from __future__ import annotations

from typing import assert_never

from behemoth.base.ids import Step
from behemoth.state.observation import Cause, Observation
from behemoth.state.status import Phase, RunStatus

_REASONS: dict[Cause, str] = {
    "node": "NodeLost",
    "coordinator": "CoordinatorLost",
    "signal": "WorkerKilled",
    "exit": "WorkerFailed",
    "corrupt": "CheckpointCorrupt",
    "restore": "RestoreFailed",
    "ended": "EndedEarly",
    "hang": "Hang",
    "resume": "Resumed",
}


def status_of(obs: Observation) -> RunStatus:
    """The run as `obs` knows it."""
    phase, reason, message = _phase(obs)
    return RunStatus(
        phase=phase,
        reason=reason,
        message=message,
        attempt=obs.attempt,
        step=obs.progress.step if obs.progress is not None else Step(0),
        best_step=obs.best_step,
        commit=obs.newest_commit,
        num_failures=obs.tally.num_any,
        num_save_failures=obs.num_save_failures,
        save_message=obs.save_message,
        outcome=obs.outcome,
    )


def _phase(obs: Observation) -> tuple[Phase, str, str]:
    match obs.outcome:
        case None:
            return _open_phase(obs)
        case "succeeded":
            return "succeeded", "Completed", obs.close_reason
        case "failed":
            return "failed", "Failed", obs.close_reason
        case "suspended":
            return "suspended", "Suspended", obs.close_reason
        case "cancelled":
            return "suspended", "Cancelled", obs.close_reason
        case _:
            assert_never(obs.outcome)


def _open_phase(obs: Observation) -> tuple[Phase, str, str]:
    if obs.epoch == 0:
        return "pending", "WaitingForCoordinator", "no coordinator leads the run yet"
    if obs.unknown:
        return _attempt_phase(obs)[0], "Rejoining", f"{len(obs.unknown)} agents have yet to rejoin the new coordinator"
    if obs.incident is not None:
        return _recovering(obs)
    return _attempt_phase(obs)


def _recovering(obs: Observation) -> tuple[Phase, str, str]:
    incident = obs.incident
    if obs.waiting_since_us is not None:
        why = f": {incident.reason}" if incident is not None else ""
        return "recovering", "WaitingForNode", f"{len(obs.vacant)} slots wait for a node{why}"
    if incident is None or not obs.are_commits_known:
        return "recovering", "WaitingForStore", "the store was not listed yet"
    return "recovering", _REASONS[incident.cause], incident.reason


def _attempt_phase(obs: Observation) -> tuple[Phase, str, str]:
    is_again = obs.attempt > 1
    match obs.gang:
        case "none" if not obs.are_commits_known:
            return "pending", "WaitingForStore", "the store was not listed yet"
        case "none":
            there = f"{len(obs.spares)} of {obs.config.num_slots} nodes are there"
            return "placing", "WaitingForNodes", there
        case "starting":
            return "starting", "Restarting" if is_again else "Starting", f"attempt {obs.attempt}: {obs.start_message}"
        case "restoring":
            return "restoring", "Restoring", f"attempt {obs.attempt}: {obs.start_message}"
        case "finished":
            return "training", "Finishing", "every worker has ended"
        case "training":
            return _training(obs)
        case _:
            assert_never(obs.gang)


def _training(obs: Observation) -> tuple[Phase, str, str]:
    step = obs.progress.step if obs.progress is not None else 0
    where = f"step {step} of {obs.config.total_steps}"
    if obs.asked is not None:
        return "training", "Suspending" if obs.asked == "suspend" else "Stopping", f"{where}, saving to end"
    if step < obs.best_step:
        return "training", "Recomputing", f"{where}, {obs.best_step - step} steps to regain"
    if obs.num_save_failures:
        return "training", "SavesFailing", f"{where}; {obs.num_save_failures} saves in a row failed: {obs.save_message}"
    return "training", "Training", where
