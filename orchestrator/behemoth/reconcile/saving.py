"""Saves: announced ahead, agreed on when they are the last, committed once, or given up.

One save is in flight at a time. What becomes of it when its attempt ends:

- Not in memory everywhere (called, armed, agreed): aborted before the next Start; its ranks are gone.
- Staged: the agents own the memory and go on writing it beside the new attempt, so it may still commit, unless a holder
  was lost before all receipts were in: then its bytes are lost, and it is aborted.
- Written: all bytes are in the store, so its Commit goes on whatever is lost.

The new attempt restores the newest *committed* step, which may be older than the staged one. It then repeats those
steps bit for bit, so a commit that arrives meanwhile names the same state and is as good as one of its own. Steps up
to the newest commit are not saved again: nobody would restore them, and their names are taken.

Neighbours: `behemoth.policy.cadence` chooses steps, `keeping` has the commits, `closing` ends the run after a last
save.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.policy import cadence
from behemoth.reconcile.keeping import with_commit
from behemoth.state.effect import Abort, Agree, Commit, Effect, Save
from behemoth.state.evidence import (
    Committed,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
)
from behemoth.state.observation import Observation, SaveInFlight

_MAX_ABORTED = 16
_REPORT_US = 2_000_000
"""How far the line of progress is drawn on without a promise: bodies report every tick; longer silence is a stall."""


def on_passed(obs: Observation, told: SavePassed) -> Observation:
    save = _matching(obs, told.write_id)
    if save is None or save.state not in ("called", "armed"):
        return obs
    why = f"a rank stood at step {told.step} already"
    lead_steps = cadence.lead_after_passed(obs.lead_steps, late_by=told.step - save.step)
    obs = replace(obs, save=replace(save, doom=why), lead_steps=lead_steps)
    return _with_furthest(obs, told.attempt, told.step)


def _with_furthest(obs: Observation, attempt: Attempt, step: Step) -> Observation:
    """Saves tell how far ranks are too, and often before the next tick does."""
    progress = obs.progress
    if progress is None or attempt != obs.attempt or step <= progress.furthest_step:
        return obs
    return replace(obs, progress=replace(progress, furthest_step=step))


def on_armed(obs: Observation, told: SaveArmed) -> Observation:
    save = _matching(obs, told.write_id)
    if save is None or save.state != "called":
        return obs
    return replace(obs, save=replace(save, state="armed"), lead_steps=obs.lead_steps // 2)


def on_staged(obs: Observation, told: SaveStaged) -> Observation:
    save = _matching(obs, told.write_id)
    if save is None or save.state not in ("called", "armed", "agreed"):
        return obs
    return _with_furthest(replace(obs, save=replace(save, state="staged")), save.attempt, save.step)


def on_written(obs: Observation, told: SaveWritten) -> Observation:
    save = _matching(obs, told.write_id)
    if save is None or save.state in ("written", "committing"):
        return obs
    return _with_furthest(replace(obs, save=replace(save, state="written")), save.attempt, save.step)


def on_failed(obs: Observation, told: SaveFailed) -> Observation:
    save = _matching(obs, told.write_id)
    return obs if save is None else replace(obs, save=replace(save, doom=told.reason, is_failure=True))


def _matching(obs: Observation, write_id: WriteId) -> SaveInFlight | None:
    save = obs.save
    return save if save is not None and save.write_id == write_id and save.doom is None else None


def on_committed(obs: Observation, told: Committed) -> Observation:
    """The commit exists, even when it was given up here; repetitions and commits of others are no news."""
    commit, save = told.commit, obs.save
    is_flying = save is not None and save.write_id == commit.write_id
    if not is_flying and commit.write_id not in obs.aborted:
        return obs
    obs = replace(obs, aborted=tuple(entry for entry in obs.aborted if entry != commit.write_id))
    if is_flying and save is not None:
        obs = _with_furthest(obs, save.attempt, save.step)
        obs = replace(obs, save=None, num_save_failures=0, num_last_failures=0, save_message="")
        obs = replace(obs, ending_step=commit.step, ended_us=obs.now_us) if save.is_last else obs
    return with_commit(obs, commit)


def elapse(obs: Observation) -> Observation:
    """From when the gang stands at the save's step, its limit counts; one that is over it failed."""
    save = obs.save
    if save is None or save.doom is not None:
        return obs
    if save.reached_us is None and _is_reached(obs, save):
        save = replace(save, reached_us=obs.now_us)
        obs = replace(obs, save=save)
    if _is_unsaved_end(obs, save):
        return replace(obs, save=replace(save, doom="the program ended without saving for it"))
    if save.reached_us is None or obs.now_us < save.reached_us + obs.config.save_limit_us:
        return obs
    why = f"no commit within {obs.config.save_limit_us / 1e6:g} s (it was {save.state})"
    return replace(obs, save=replace(save, doom=why, is_failure=True))


def _is_unsaved_end(obs: Observation, save: SaveInFlight) -> bool:
    """Whether every worker has ended and none will stage this save. Agents had a beat's time to tell that they have."""
    due_us = _unsaved_end_us(obs, save)
    return due_us is not None and obs.now_us >= due_us


def _unsaved_end_us(obs: Observation, save: SaveInFlight) -> int | None:
    if obs.gang != "finished" or save.state not in ("called", "armed", "agreed"):
        return None
    return obs.gang_since_us + obs.config.heartbeat_limit_us


def _is_reached(obs: Observation, save: SaveInFlight) -> bool:
    if save.state in ("staged", "written", "committing") or obs.gang == "finished":
        return True
    return obs.progress is not None and obs.progress.furthest_step >= save.step


def aborts(obs: Observation) -> tuple[Effect, ...]:
    """Give up what cannot or shall not commit any more."""
    save = obs.save
    why = None if save is None else _abort_reason(obs, save)
    if save is None or why is None:
        return ()
    return (Abort(fence=obs.fence, write_id=save.write_id, reason=why),)


def _abort_reason(obs: Observation, save: SaveInFlight) -> str | None:
    if save.doom is not None:
        return save.doom
    if save.state in ("called", "armed", "agreed") and (obs.incident is not None or obs.gang in ("none", "starting")):
        return "its attempt ended before all ranks had saved"
    if obs.gang == "finished" and not save.is_last and save.state in ("called", "armed"):
        return "the program ended"
    is_early = save.state in ("called", "armed")
    if is_early and obs.asked is not None and not save.is_last:
        return "the run shall end sooner"
    if is_early and obs.asked is None and save.is_last and save.step < obs.config.total_steps:
        return "the run shall go on"
    return None


def calls(obs: Observation) -> tuple[Effect, ...]:
    """Take the save in flight one step further, or announce the next."""
    save = obs.save
    if save is None:
        return _announcement(obs)
    if save.doom is None and save.is_last and save.state == "armed":
        return (Agree(fence=obs.fence, write_id=save.write_id),)
    if save.doom is None and save.state == "written":
        return (Commit(fence=obs.fence, step=save.step, write_id=save.write_id),)
    return ()


def _announcement(obs: Observation) -> tuple[Effect, ...]:
    step = _next_step(obs)
    if step is None:
        return ()
    is_last = obs.asked is not None or step >= obs.config.total_steps
    return (Save(fence=obs.fence, step=step, write_id=_next_write_id(obs), is_last=is_last),)


def _next_write_id(obs: Observation) -> WriteId:
    return WriteId(f"a{obs.attempt}-{obs.num_writes + 1}")


def _next_step(obs: Observation) -> Step | None:
    progress = obs.progress
    is_idle = obs.gang != "training" or obs.incident is not None or obs.unknown or obs.ending_step is not None
    if is_idle or progress is None or obs.is_done:
        return None
    return cadence.next_step(
        obs.config.cadence,
        line=_line(obs),
        furthest_step=progress.furthest_step,
        due_us=obs.now_us if obs.asked is not None else _due_us(obs),
        now_us=obs.now_us,
        step_us=obs.step_us,
        learned_lead_steps=obs.lead_steps,
        is_asked=obs.asked is not None,
        committed=obs.commits[-1].step if obs.commits else Step(0),
        total_steps=obs.config.total_steps,
    )


def _line(obs: Observation) -> Step:
    progress = obs.progress
    if progress is None:
        return Step(0)
    drawn_to_us = max(progress.next_report_by_us or 0, progress.at_us + obs.step_us + _REPORT_US)
    until_us = min(obs.now_us, drawn_to_us)
    return cadence.line_step(progress.step, at_us=progress.at_us, step_us=obs.step_us, now_us=until_us)


def _due_us(obs: Observation) -> int:
    return max(obs.saved_us, obs.gang_since_us) + (obs.config.cadence.interval_us or 0)


def called(obs: Observation, effect: Save) -> Observation:
    if obs.save is not None or effect.write_id != _next_write_id(obs):
        return obs
    save = SaveInFlight(
        step=effect.step,
        write_id=effect.write_id,
        attempt=obs.attempt,
        is_last=effect.is_last,
    )
    return replace(obs, save=save, num_writes=obs.num_writes + 1, saved_us=obs.now_us)


def agreed(obs: Observation, effect: Agree) -> Observation:
    save = _matching(obs, effect.write_id)
    return obs if save is None or save.state != "armed" else replace(obs, save=replace(save, state="agreed"))


def committing(obs: Observation, effect: Commit) -> Observation:
    save = _matching(obs, effect.write_id)
    return obs if save is None or save.state != "written" else replace(obs, save=replace(save, state="committing"))


def aborted(obs: Observation, effect: Abort) -> Observation:
    save = obs.save
    if save is None or save.write_id != effect.write_id:
        return obs
    obs = replace(obs, save=None, aborted=(*obs.aborted, save.write_id)[-_MAX_ABORTED:])
    if not save.is_failure:
        return obs
    return replace(
        obs,
        num_save_failures=obs.num_save_failures + 1,
        num_last_failures=obs.num_last_failures + (1 if save.is_last else 0),
        save_message=f"save of step {save.step} failed: {effect.reason}",
        saved_us=obs.now_us,
    )


def deadlines(obs: Observation) -> list[int]:
    """Times at which `elapse` or `calls` has something to do."""
    save, progress = obs.save, obs.progress
    if save is not None:
        limit_us = None if save.reached_us is None else save.reached_us + obs.config.save_limit_us
        return [at_us for at_us in (limit_us, _unsaved_end_us(obs, save)) if at_us is not None]
    if obs.config.cadence.interval_us is None or obs.gang != "training" or progress is None:
        return []
    lead = cadence.lead_steps(step_us=obs.step_us, learned_lead_steps=obs.lead_steps)
    end_us = progress.at_us + (obs.config.total_steps - lead - progress.step) * obs.step_us
    return [_due_us(obs), end_us]
