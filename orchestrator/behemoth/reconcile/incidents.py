"""The one open incident of an attempt, and the loss of a node, which may open it.

Facts in, observation out; nothing is decided here. Neighbours: `agents` and `gang`, which call it; `saving`, whose
docstring says which save survives.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import NodeId
from behemoth.policy.failure import more_root_like
from behemoth.policy.spares import backoff_us
from behemoth.state.observation import Cause, Incident, Observation, with_node


def first_sign_us(obs: Observation) -> int:
    """When the gang was last known to be well: its last completed step, or since when it is in its present state."""
    told_us = obs.progress.at_us if obs.progress is not None else 0
    return min(obs.now_us, max(told_us, obs.gang_since_us))


def open_incident(obs: Observation, incident: Incident) -> Observation:
    """`obs` with the best explanation of this attempt's end; nothing when no attempt is under way."""
    is_late_end = obs.gang == "finished" and incident.cause in ("node", "coordinator", "ended", "resume")
    if not obs.is_gang_active and not is_late_end:
        return obs
    best = incident if obs.incident is None else more_root_like(obs.incident, incident)
    return replace(obs, incident=best)


def plain_incident(
    obs: Observation, cause: Cause, reason: str, *, node: NodeId | None = None, settle_us: int = 0
) -> Incident:
    """An incident told now, to be acted on after `settle_us`."""
    return Incident(
        cause=cause,
        node=node,
        reason=reason,
        at_us=first_sign_us(obs),
        told_us=obs.now_us,
        act_at_us=obs.now_us + settle_us,
    )


def lose_node(obs: Observation, name: NodeId, reason: str, *, at_us: int, is_takeover: bool = False) -> Observation:
    """The agent is gone or is taken for gone: it shall be evicted, and the gang misses it if it held a slot."""
    node = obs.nodes[name]
    lost = replace(node, state="absent", evict=reason, late_us=None, due_us=None, overdue_us=None)
    obs = with_node(obs, name, lost)
    if node.slot is None:
        return obs
    obs = _doom_save(obs, f"node {name} was lost")
    incident = plain_incident(obs, "coordinator" if is_takeover else "node", reason, node=name)
    return open_incident(obs, replace(incident, at_us=max(at_us, min(obs.gang_since_us, obs.now_us))))


def schedule_agent(obs: Observation, name: NodeId, *, num_refusals: int) -> Observation:
    """The absent node's next agent is due after a pause that grows with refusals."""
    pause_us = backoff_us(num_refusals)
    due_us = obs.now_us + pause_us
    node = obs.nodes[name]
    node = replace(node, state="absent", due_us=due_us, num_refusals=num_refusals, late_us=None, overdue_us=None)
    return with_node(obs, name, node)


def _doom_save(obs: Observation, why: str) -> Observation:
    """What a lost holder had in memory and had not all written cannot be committed."""
    save = obs.save
    if save is None or save.doom is not None or save.state in ("written", "committing"):
        return obs
    return replace(obs, save=replace(save, doom=why))
