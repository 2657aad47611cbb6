"""The gang: how far its attempt is, by what it says and by its silence, and what ends it.

An attempt that lost a node or a worker is replaced as a whole. Neighbours: `attempts` starts the next one, `incidents`
holds the cause.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import Step
from behemoth.policy import failure, hang
from behemoth.reconcile.incidents import first_sign_us, open_incident, plain_incident
from behemoth.state.evidence import (
    GangFinished,
    GangGone,
    GangMismatched,
    GangRestored,
    GangUp,
    Progress,
    RestoreFailed,
    WorkerFailed,
)
from behemoth.state.observation import GangState, Incident, Observation, SaveInFlight

_FORMER_WEIGHT = 3
"""Weight of the former estimate against a report that comes `_FULL_WEIGHT_US` or more after the one before it."""
_FULL_WEIGHT_US = 1_000_000


def on_up(obs: Observation, told: GangUp) -> Observation:
    if told.attempt != obs.attempt or obs.gang != "starting" or obs.incident is not None:
        return obs
    return _enter(obs, "restoring")


def on_restored(obs: Observation, told: GangRestored) -> Observation:
    if told.attempt != obs.attempt or obs.gang not in ("starting", "restoring") or obs.incident is not None:
        return obs
    progress = Progress(
        attempt=obs.attempt,
        step=told.step,
        furthest_step=told.step,
        at_us=obs.now_us,
        phase="first_step",
        phase_since_us=obs.now_us,
        slowest_step_us=0,
        stall_us=0,
    )
    best_step = Step(max(obs.best_step, told.step))
    return replace(_enter(obs, "training"), progress=progress, best_step=best_step)


def on_progress(obs: Observation, told: Progress) -> Observation:
    """A newer point of the line. Points of the future are taken for now, so that no clock can put off a hang."""
    if told.attempt == obs.attempt and told.phase not in ("start", "restore"):
        obs = on_restored(obs, _restored_by(obs))
    last = obs.progress
    if told.attempt != obs.attempt or obs.gang != "training" or last is None or obs.incident is not None:
        return obs
    if _is_older(told, last) or told == last:
        return obs
    if told.at_us > obs.now_us or told.phase_since_us > obs.now_us:
        told = replace(told, at_us=min(told.at_us, obs.now_us), phase_since_us=min(told.phase_since_us, obs.now_us))
    furthest = max(told.furthest_step, told.step, last.furthest_step)
    if furthest != told.furthest_step:
        told = replace(told, furthest_step=Step(furthest))
    if told.step == last.step:
        return replace(obs, progress=told)
    return replace(
        obs,
        progress=told,
        best_step=Step(max(obs.best_step, told.step)),
        step_us=_pace_us(obs.step_us, last, told),
        step_times=obs.step_times if last.phase == "first_step" else obs.step_times.with_sample(told.slowest_step_us),
    )


def _is_older(told: Progress, last: Progress) -> bool:
    """Steps decide. Times do only among equal steps: where the word of the restore was late or lost, `last` began
    when the first step was heard of, which may be later than what that step and its phase say of themselves. The time
    of hearing comes first: another rank may decide now, whose phase began earlier."""
    if told.step != last.step:
        return told.step < last.step
    return (told.at_us, told.phase_since_us) < (last.at_us, last.phase_since_us)


def _restored_by(obs: Observation) -> GangRestored:
    """Whoever makes steps is up and restored, even if the word of it is late or lost."""
    step = obs.restore.step if obs.restore is not None else Step(0)
    return GangRestored(attempt=obs.attempt, step=step, num_from_memory=0)


def _pace_us(step_us: int, last: Progress, told: Progress) -> int:
    """Time per step, smoothed; the first step of an attempt compiles and connects, so it says nothing.

    Words may be held up on their way and be heard at once, each of many steps. So a word weighs by the time since the
    last one, and a first estimate from two that came close together is no less than the slowest step: a gang that
    looks too fast is given saves that it will not come to for long, one that looks too slow such as it has passed."""
    passed_us = told.at_us - last.at_us
    if last.phase == "first_step" or passed_us <= 0:
        return step_us
    sample_us = passed_us // (told.step - last.step)
    weight_us = min(passed_us, _FULL_WEIGHT_US)
    if step_us == 0:
        return sample_us if weight_us == _FULL_WEIGHT_US else max(sample_us, told.slowest_step_us)
    former_us = _FORMER_WEIGHT * _FULL_WEIGHT_US
    return (former_us * step_us + weight_us * sample_us) // (former_us + weight_us)


def on_worker_failed(obs: Observation, told: WorkerFailed) -> Observation:
    node = obs.nodes.get(told.node)
    if told.attempt != obs.attempt or node is None or node.slot is None or not obs.is_gang_active:
        return obs
    incident = failure.incident_of_worker(
        told, first_sign_us=first_sign_us(obs), now_us=obs.now_us, settle_us=obs.config.settle_us
    )
    return open_incident(obs, incident)


def on_restore_failed(obs: Observation, told: RestoreFailed) -> Observation:
    commit = obs.restore
    is_ours = told.attempt == obs.attempt and obs.gang in ("starting", "restoring")
    if not is_ours or commit is None or commit.write_id != told.write_id or commit.write_id in obs.rejected:
        return obs
    reason = f"step {commit.step} did not restore on node {told.node}: {failure.last_line(told.reason)}"
    if not told.is_corrupt:
        incident = plain_incident(obs, "restore", reason, node=told.node)
        return open_incident(obs, replace(incident, is_final=told.is_unfit))
    obs = replace(obs, rejecting=(commit, reason))
    return open_incident(obs, plain_incident(obs, "corrupt", reason, node=told.node))


def on_mismatched(obs: Observation, told: GangMismatched) -> Observation:
    """The program is wrong, and would be at the next attempt."""
    if told.attempt != obs.attempt or obs.gang not in ("starting", "restoring"):
        return obs
    return open_incident(obs, replace(plain_incident(obs, "restore", told.reason, node=told.node), is_final=True))


def on_gone(obs: Observation, told: GangGone) -> Observation:
    """No worker is left. Who ended first, and how, is told apart from this, and gets the time to be told."""
    if told.attempt != obs.attempt or not obs.is_gang_active or obs.incident is not None:
        return obs
    reason = f"every worker of attempt {obs.attempt} is gone"
    return open_incident(obs, plain_incident(obs, "ended", reason, settle_us=obs.config.settle_us))


def on_finished(obs: Observation, told: GangFinished) -> Observation:
    is_explained = obs.incident is not None and obs.incident.cause != "ended"
    if told.attempt != obs.attempt or not obs.is_gang_active or is_explained:
        return obs
    return replace(_enter(obs, "finished"), incident=None)


def _enter(obs: Observation, gang: GangState) -> Observation:
    return replace(obs, gang=gang, gang_since_us=obs.now_us)


def elapse(obs: Observation) -> Observation:
    """What silence until now means for the gang: a hang, or an end without the last save."""
    if obs.incident is not None or obs.unknown:
        return _note_shortage(obs)
    if obs.gang == "finished" and obs.save is None and not obs.is_done:
        return _note_shortage(open_incident(obs, _end_of(obs)))
    due_us = hang_deadline_us(obs)
    if due_us is None or obs.now_us < due_us:
        return _note_shortage(obs)
    phase = obs.progress.phase if obs.gang == "training" and obs.progress is not None else obs.gang
    step = obs.progress.step if obs.progress is not None else 0
    silent_s = (obs.now_us - first_sign_us(obs)) / 1e6
    reason = f"no step for {silent_s:.1f} s at step {step} ({phase})"
    return _note_shortage(open_incident(obs, plain_incident(obs, "hang", reason)))


def _end_of(obs: Observation) -> Incident:
    step = obs.progress.step if obs.progress is not None else 0
    if obs.ending_step is not None:
        return plain_incident(obs, "resume", f"ended at step {obs.ending_step} as asked, and was resumed")
    total = obs.config.total_steps
    return plain_incident(obs, "ended", f"the program ended at step {step} of {total} without its last checkpoint")


def hang_deadline_us(obs: Observation) -> int | None:
    """When the present silence is a hang; None when nobody has to move."""
    floors, p99_us = obs.config.hang_floors, obs.step_times.p99_us
    since_us = max(obs.gang_since_us, obs.watch_us)
    match obs.gang:
        case "starting":
            return since_us + hang.limit_us("start", floors=floors, p99_us=p99_us)
        case "restoring":
            return since_us + hang.limit_us("restore", floors=floors, p99_us=p99_us)
        case "training" if obs.progress is not None and obs.ending_step is None:
            return _training_deadline_us(obs, obs.progress)
        case _:
            return None


def _training_deadline_us(obs: Observation, progress: Progress) -> int:
    """Ranks that have staged a last save wait for storage: for as long as the save may take, and once more from the
    time at which it was given up."""
    floors, p99_us = obs.config.hang_floors, obs.step_times.p99_us
    since_us = max(obs.gang_since_us, obs.watch_us)
    if progress.phase == "save":
        since_us = max(since_us, obs.saved_us)
    due_us = hang.deadline_us(progress, watch_us=since_us, floors=floors, p99_us=p99_us)
    save = obs.save
    if progress.phase != "save" or save is None or save.reached_us is None or not is_last_staged(save):
        return due_us
    limit_us = obs.config.save_limit_us + hang.limit_us("save", floors=floors, p99_us=p99_us)
    return max(due_us, save.reached_us + limit_us)


def _note_shortage(obs: Observation) -> Observation:
    """Keep since when nodes are missing."""
    if is_short(obs) == (obs.waiting_since_us is not None):
        return obs
    return replace(obs, waiting_since_us=obs.now_us if obs.waiting_since_us is None else None)


def is_short(obs: Observation) -> bool:
    """Whether the gang cannot be filled from the nodes that are there."""
    if obs.epoch == 0 or obs.outcome is not None or obs.unknown:
        return False
    if not obs.holders:
        return len(obs.spares) < obs.config.num_slots
    return len(obs.vacant) > len(obs.spares)


def is_last_staged(save: SaveInFlight) -> bool:
    return save.is_last and save.state in ("staged", "written", "committing")


def deadlines(obs: Observation) -> list[int]:
    """The time at which `elapse` has something to do."""
    due_us = None if obs.incident is not None or obs.unknown else hang_deadline_us(obs)
    return [] if due_us is None else [due_us]
