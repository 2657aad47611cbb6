"""Attempts: when the next one begins, which spares take the places of nodes that are lost, what each end counts for.

Restarts are decided once the cause has settled, every slot has a present holder, and the store was listed. Neighbours:
`gang` hears what ends an attempt, `incidents` holds the cause, `closing` ends runs.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import Attempt, NodeId, Slot, Step
from behemoth.policy import failure, spares
from behemoth.reconcile.gang import is_last_staged
from behemoth.state.effect import CommitRef, Effect, Replace, Start, Stop
from behemoth.state.fence import Fence
from behemoth.state.observation import Incident, Observation, Tally, with_node


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
    """Times at which `starts` has something to do."""
    return [] if obs.incident is None else [obs.incident.act_at_us, _settled_us(obs, obs.incident)]
