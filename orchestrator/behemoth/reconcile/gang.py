"""The gang: its attempts from start to end, what ends one, and how the next begins.

An attempt that lost a node or a worker is replaced as a whole. Restarts are decided once the cause has settled, every
slot has a present holder, and the store was listed. Neighbours: `incidents` holds the cause, `closing` ends runs.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import Attempt, NodeId, Slot, Step
from behemoth.policy import failure, hang, spares
from behemoth.reconcile.incidents import first_sign_us, open_incident, plain_incident
from behemoth.state.effect import CommitRef, Effect, Reject, Replace, Start, Stop
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
from behemoth.state.fence import Fence
from behemoth.state.observation import GangState, Incident, Observation, SaveInFlight, Tally, with_node

_PACE_WEIGHT = 4


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
    """Time per step, smoothed; the first step of an attempt compiles and connects, so it says nothing."""
    if last.phase == "first_step" or told.at_us <= last.at_us:
        return step_us
    sample_us = (told.at_us - last.at_us) // (told.step - last.step)
    return sample_us if step_us == 0 else ((_PACE_WEIGHT - 1) * step_us + sample_us) // _PACE_WEIGHT


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


def is_settled(obs: Observation) -> bool:
    """Whether the open incident may be acted on: no better explanation is to be expected any more.

    A plain exit also waits while a holder is late: a frozen node shows first in the peers that it leaves waiting.
    """
    incident = obs.incident
    if incident is None or obs.now_us < incident.act_at_us:
        return False
    return obs.now_us >= _settled_us(obs, incident)


def _settled_us(obs: Observation, incident: Incident) -> int:
    if incident.cause not in ("exit", "ended") or all(obs.nodes[name].slot is None for name in obs.late):
        return incident.act_at_us
    return incident.act_at_us + obs.config.heartbeat_limit_us


def tally_with(obs: Observation, incident: Incident) -> Tally:
    """The failures of the program once this incident counts; unchanged when it is none of them."""
    if not _is_counted(obs, incident):
        return obs.tally
    step = obs.progress.step if obs.progress is not None else Step(0)
    is_stuck = obs.progress is None or obs.progress.phase == "first_step"
    return failure.tally_after(obs.tally, incident, best_step=obs.best_step, step=step, is_stuck=is_stuck)


def _is_counted(obs: Observation, incident: Incident) -> bool:
    """A bad commit is the program's failure only when there is none left to go back to."""
    return incident.is_program or (incident.cause == "corrupt" and not obs.commits)


def rejections(obs: Observation) -> tuple[Effect, ...]:
    if obs.rejecting is None:
        return ()
    commit, reason = obs.rejecting
    return (Reject(fence=obs.fence, commit=commit, reason=reason),)


def starts(obs: Observation) -> tuple[Effect, ...]:
    """Fill the vacant slots and start the next attempt, all in one, as soon as that can be done."""
    is_ready = obs.are_commits_known and not obs.unknown and obs.rejecting is None
    if not is_ready or len(obs.holders) < obs.config.num_slots or len(obs.vacant) > len(obs.spares):
        return ()
    if obs.gang != "none" and not (is_settled(obs) and not is_saving_the_end(obs)):
        return ()
    restore = obs.newest_commit
    fence = Fence(run_uid=obs.config.run_uid, epoch=obs.epoch, attempt=Attempt(obs.attempt + 1))
    is_hang = obs.incident is not None and obs.incident.cause == "hang"
    start = Start(fence=fence, restore=restore, reason=_start_reason(obs, restore), dump_stacks=is_hang)
    return (*_replacements(obs), start)


def is_saving_the_end(obs: Observation) -> bool:
    """Whether the last save is in memory everywhere: then the workers are no longer needed, whatever became of them."""
    return obs.save is not None and obs.save.doom is None and is_last_staged(obs.save)


def is_last_staged(save: SaveInFlight) -> bool:
    return save.is_last and save.state in ("staged", "written", "committing")


def _start_reason(obs: Observation, restore: CommitRef | None) -> str:
    where = f"from step {restore.step}" if restore is not None else "from the beginning"
    return f"{obs.incident.reason}; {where}" if obs.incident is not None else where


def _replacements(obs: Observation) -> tuple[Replace, ...]:
    leaving = [(slot, name, f"node {name} is lost") for slot, name in sorted(obs.vacant.items())]
    struck = _struck_out(obs)
    if struck is not None and len(leaving) < len(obs.spares):
        leaving.append((obs.nodes[struck].slot or Slot(0), struck, f"workers on node {struck} failed again"))
    if not leaving:
        return ()
    entries = ((name, obs.nodes[name]) for name in obs.spares)
    chosen = spares.best_spares(entries, count=len(leaving), now_us=obs.now_us)
    if struck is not None and spares.is_struck_out(obs.nodes[chosen[-1]], now_us=obs.now_us):
        leaving = [entry for entry in leaving if entry[1] != struck]
    return tuple(
        Replace(fence=obs.fence, slot=slot, node=name, spare=spare, reason=reason)
        for (slot, name, reason), spare in zip(leaving, chosen, strict=False)
    )


def _struck_out(obs: Observation) -> NodeId | None:
    """The present holder that has failed too often; None when the program is to blame."""
    name = obs.incident.node if obs.incident is not None and _is_strike(obs, obs.incident) else None
    if name is None or obs.nodes[name].state != "present" or obs.nodes[name].slot is None:
        return None
    return name if spares.is_struck_out(obs.nodes[name], now_us=obs.now_us) else None


def _is_strike(obs: Observation, incident: Incident) -> bool:
    is_worker = incident.cause in ("signal", "exit")
    return is_worker and incident.node is not None and not failure.is_of_program(incident, obs.failures_seen)


def rejected(obs: Observation, effect: Reject) -> Observation:
    write_id = effect.commit.write_id
    is_rejecting = obs.rejecting is not None and obs.rejecting[0].write_id == write_id
    return replace(
        obs,
        rejecting=None if is_rejecting else obs.rejecting,
        rejected=obs.rejected | {write_id},
        commits=tuple(commit for commit in obs.commits if commit.write_id != write_id),
        expired=tuple(commit for commit in obs.expired if commit.write_id != write_id),
    )


def replaced(obs: Observation, effect: Replace) -> Observation:
    if obs.holders.get(effect.slot) != effect.node or effect.spare not in obs.spares:
        return obs
    obs = with_node(obs, effect.node, replace(obs.nodes[effect.node], slot=None))
    return with_node(obs, effect.spare, replace(obs.nodes[effect.spare], slot=effect.slot))


def started(obs: Observation, effect: Start) -> Observation:
    if effect.fence.attempt != obs.attempt + 1:
        return obs
    if obs.incident is not None:
        obs = _account(obs, obs.incident)
    return replace(
        obs,
        attempt=effect.fence.attempt,
        gang="starting",
        gang_since_us=obs.now_us,
        watch_us=obs.now_us,
        progress=None,
        incident=None,
        restore=effect.restore,
        ending_step=None,
        lead_steps=0,
        start_message=effect.reason,
    )


def _account(obs: Observation, incident: Incident) -> Observation:
    """Strikes, failures and signatures of the incident that this start answers."""
    if _is_strike(obs, incident) and incident.node is not None:
        node = obs.nodes[incident.node]
        micro = spares.strikes_micro(node, now_us=obs.now_us) + spares.STRIKE_MICRO
        obs = with_node(obs, incident.node, replace(node, strikes_micro=micro, struck_us=obs.now_us))
    if not _is_counted(obs, incident):
        return obs
    return replace(
        obs,
        tally=tally_with(obs, incident),
        failures_seen=failure.seen_after(incident, obs.failures_seen),
    )


def stopped(obs: Observation, effect: Stop) -> Observation:
    return obs if effect.fence.attempt != obs.attempt else replace(obs, gang="none", progress=None, incident=None)


def deadlines(obs: Observation) -> list[int]:
    """Times at which `elapse` or `starts` has something to do."""
    if obs.incident is not None:
        return [obs.incident.act_at_us, _settled_us(obs, obs.incident)]
    due_us = None if obs.unknown else hang_deadline_us(obs)
    return [] if due_us is None else [due_us]
