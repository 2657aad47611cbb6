"""Terms, wishes, and the end: when a run begins anew under another coordinator, and when it is over.

A run is closed as succeeded (its last step is committed), failed (with the reason), or at the operator's wish:
suspended or cancelled. Succeeded is final for as long as the store has the last step. The others go on when the same
file is run again, which begins a new term with the failures forgotten. A cancelled run is in phase `suspended` with
outcome `cancelled`, since its work is kept.
"""

from __future__ import annotations

from immutables import Map
from msgspec.structs import replace

from behemoth.base.ids import Epoch, NodeId
from behemoth.policy import hang
from behemoth.policy.failure import is_hopeless
from behemoth.reconcile import keeping
from behemoth.reconcile.attempts import is_saving_the_end, is_settled, tally_with
from behemoth.reconcile.incidents import open_incident, plain_incident
from behemoth.state.config import WorkPhase
from behemoth.state.effect import Close, Effect, Outcome, Stop
from behemoth.state.evidence import Asked, CommitsFound, TermBegan
from behemoth.state.observation import Node, Observation, Tally, indexes_of

MAX_LAST_FAILURES = 3
"""How often the last save is tried before the run ends without it."""


def on_term(obs: Observation, told: TermBegan) -> Observation:
    """Another coordinator leads: what only the former one knew is asked again, what only it did is done again."""
    if told.epoch <= obs.epoch:
        return obs
    obs = replace(
        obs,
        epoch=told.epoch,
        term_us=obs.now_us,
        are_commits_known=False,
        commits_of_term=(),
        deleting=frozenset(),
        tally=Tally(),
        num_last_failures=0,
        waiting_since_us=None,
    )
    if obs.outcome == "succeeded":
        return obs
    return _take_over(obs) if obs.outcome is None else _reopen(obs)


def _take_over(obs: Observation) -> Observation:
    obs = _with_nodes(obs, Map({name: _untold(node, obs.now_us) for name, node in obs.nodes.items()}))
    obs = replace(obs, rejoin_by_us=obs.now_us + obs.config.rejoin_us, watch_us=obs.now_us, asked=None)
    if obs.gang == "finished" and not obs.is_done:
        obs = open_incident(obs, plain_incident(obs, "coordinator", "the coordinator was lost after the workers ended"))
    save = obs.save
    if save is None or save.doom is not None:
        return obs
    if save.state in ("written", "committing"):
        return replace(obs, save=replace(save, state="written"))
    return replace(obs, save=replace(save, doom="the coordinator that counted its receipts was lost"))


def _untold(node: Node, now_us: int) -> Node:
    """What a new coordinator knows of a node: an agent may be there, until it rejoins or the time for that is over."""
    if node.state == "absent":
        return replace(node, num_refusals=0, due_us=None if node.evict is not None else now_us)
    return replace(node, state="unknown", late_us=None, due_us=None, overdue_us=None)


def _reopen(obs: Observation) -> Observation:
    obs = _with_nodes(obs, Map({name: replace(node, due_us=obs.now_us) for name, node in obs.nodes.items()}))
    return replace(
        obs,
        outcome=None,
        close_reason="",
        asked=None,
        placed_epoch=Epoch(0),
        tally=Tally(),
        num_last_failures=0,
    )


def _with_nodes(obs: Observation, nodes: Map[NodeId, Node]) -> Observation:
    obs = replace(obs, nodes=nodes)
    return replace(obs, **indexes_of(obs))


def on_found_closed(obs: Observation, told: CommitsFound) -> Observation:
    """A run that has succeeded goes on where its store has lost the last step, as where only an older checkpoint came
    back from a second store: to call that its end would pass the older one off as the newest. Where there is none that
    can be used it stays closed: nobody has asked for all of it anew."""
    if obs.outcome != "succeeded" or not told.commits:
        return obs
    found = keeping.on_found(obs, told)
    return obs if found.is_done else _reopen(found)


def on_asked(obs: Observation, told: Asked) -> Observation:
    if obs.outcome is not None:
        is_resumable = told.request == "resume" and obs.outcome in ("suspended", "cancelled")
        return _reopen(obs) if is_resumable else obs
    if told.request == "resume":
        return replace(obs, asked=None)
    return replace(obs, asked=told.request, num_last_failures=obs.num_last_failures if obs.asked else 0)


def closings(obs: Observation) -> tuple[Effect, ...]:
    """Stop and close, once there is nothing more to win by going on."""
    verdict = _success(obs) or _wish(obs) or _failure(obs)
    if verdict is None:
        return ()
    outcome, reason = verdict
    if not obs.is_gang_active:
        return (Close(fence=obs.fence, outcome=outcome, reason=reason),)
    cut = _cut(obs)
    if cut is not None:
        reason = f"{reason}, but {cut}"
    is_hang = obs.incident is not None and obs.incident.cause == "hang"
    stop = Stop(fence=obs.fence, reason=reason, dump_stacks=is_hang or _is_overdue(obs))
    return (stop, Close(fence=obs.fence, outcome=outcome, reason=reason))


def _cut(obs: Observation) -> str | None:
    """Why workers that have saved the end are ended by force, in whatever work they still do; None for others."""
    if obs.ending_step is None:
        return None
    cut = f"what the workers still did after step {obs.ending_step} was cut off"
    if obs.incident is not None:
        return f"{cut}: {obs.incident.reason}"
    return f"{cut}: no sign of an end for {_exit_limit_us(obs) / 1e6:g} s in phase {_phase(obs)}"


def _success(obs: Observation) -> tuple[Outcome, str] | None:
    if not obs.is_done or _is_ending(obs):
        return None
    return "succeeded", f"all {obs.config.total_steps} steps are done and committed"


def _is_ending(obs: Observation) -> bool:
    """Whether the workers are on their way out after the last save: they may evaluate or export before they end."""
    is_leaving = obs.gang == "training" and obs.incident is None and obs.ending_step is not None
    return is_leaving and (bool(obs.unknown) or not _is_overdue(obs))


def _is_overdue(obs: Observation) -> bool:
    return obs.ending_step is not None and obs.now_us >= exit_deadline_us(obs)


def exit_deadline_us(obs: Observation) -> int:
    """After the last save workers make no step: what they tell is the phase that they are in, and when it changed."""
    since_us = obs.progress.at_us if obs.progress is not None else 0
    return max(obs.ended_us, obs.watch_us, since_us) + _exit_limit_us(obs)


def _exit_limit_us(obs: Observation) -> int:
    """That of the phase which they declare, and in any at least the time of a save."""
    floors = obs.config.hang_floors
    return max(floors.save_us, hang.limit_us(_phase(obs), floors=floors, p99_us=obs.step_times.p99_us))


def _phase(obs: Observation) -> WorkPhase:
    return obs.progress.phase if obs.progress is not None else "save"


def _wish(obs: Observation) -> tuple[Outcome, str] | None:
    if obs.asked is None or obs.unknown or _is_ending(obs):
        return None
    outcome: Outcome = "suspended" if obs.asked == "suspend" else "cancelled"
    if obs.ending_step is not None:
        return outcome, f"as asked, at step {obs.ending_step}"
    newest = obs.newest_commit
    kept = f"step {newest.step} is the newest checkpoint" if newest is not None else "no step is committed"
    if obs.num_last_failures >= MAX_LAST_FAILURES:
        return outcome, f"as asked, but {obs.save_message}; {kept}"
    save = obs.save
    is_saving = save is not None and (save.state in ("staged", "written", "committing") or obs.gang == "finished")
    if is_saving or (obs.gang == "training" and obs.incident is None):
        return None
    return outcome, f"as asked, with nothing to save; {kept}"


def _failure(obs: Observation) -> tuple[Outcome, str] | None:
    if obs.num_last_failures >= MAX_LAST_FAILURES:
        return "failed", f"the last checkpoint failed {obs.num_last_failures} times: {obs.save_message}"
    incident = obs.incident
    if incident is not None and is_settled(obs) and not is_saving_the_end(obs):
        if incident.is_final:
            return "failed", incident.reason
        tally = tally_with(obs, incident)
        if tally is not obs.tally and is_hopeless(tally, max_failures=obs.config.max_failures):
            return "failed", f"{tally.num_any} failures without progress beyond step {obs.best_step}: {incident.reason}"
    due_us = wait_deadline_us(obs)
    if due_us is None or obs.now_us < due_us:
        return None
    missing = len(obs.vacant) if obs.holders else obs.config.num_slots
    wait_s = obs.config.node_wait_us / 1e6
    return "failed", f"waited {wait_s:g} s for nodes: {missing} missing, {len(obs.spares)} there"


def wait_deadline_us(obs: Observation) -> int | None:
    """Until when missing nodes are waited for; at the begin of a term at least as long as a start may take."""
    if obs.waiting_since_us is None:
        return None
    due_us = obs.waiting_since_us + obs.config.node_wait_us
    return due_us if obs.holders else max(due_us, obs.term_us + obs.config.hang_floors.start_us)


def closed(obs: Observation, effect: Close) -> Observation:
    """Agents leave with the run, so none is there any more; nothing of the attempt is left to care for."""
    if obs.outcome is not None:
        return obs
    left = Map({name: _left(node) for name, node in obs.nodes.items()})
    return replace(
        _with_nodes(obs, left),
        outcome=effect.outcome,
        close_reason=effect.reason,
        gang="none",
        incident=None,
        save=None,
        rejecting=None,
        waiting_since_us=None,
    )


def _left(node: Node) -> Node:
    return replace(node, state="absent", slot=None, due_us=None, evict=None, late_us=None, overdue_us=None)


def deadlines(obs: Observation) -> list[int]:
    """Times at which `closings` has something to do."""
    times = [exit_deadline_us(obs)] if obs.ending_step is not None else []
    wait_us = wait_deadline_us(obs)
    return times if wait_us is None else [*times, wait_us]
