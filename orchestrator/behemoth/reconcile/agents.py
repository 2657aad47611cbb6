"""Agents: who is there, who is late, whom to order, evict and place.

A silent agent is evicted before its slot is given away, so that no node ever has two holders. What its loss means
for the gang is `incidents`'; who replaces it is `attempts`'.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import Attempt, Epoch, NodeId, Slot
from behemoth.policy.placement import first_gang
from behemoth.policy.spares import patience_us
from behemoth.reconcile.incidents import lose_node, open_incident, plain_incident, schedule_agent
from behemoth.state.effect import Effect, Evict, Place, Provision
from behemoth.state.evidence import Late, NodeJoined, NodeLost, ProvisionFailed
from behemoth.state.observation import Observation, with_node

FORMER_TERM_ENDED = "the coordinator that led the run has ended, and its agents with it"


def on_joined(obs: Observation, told: NodeJoined) -> Observation:
    """An agent came, or came back to a new coordinator; repetitions and agents given up before change nothing."""
    node = obs.nodes.get(told.node)
    if node is None or told.incarnation < max(1, node.incarnation):
        return obs
    if told.incarnation == node.incarnation and node.state in ("present", "absent"):
        return obs
    if told.incarnation > node.incarnation and node.state in ("present", "unknown"):
        obs = lose_node(obs, told.node, f"node {told.node} came back as another agent", at_us=obs.now_us)
        node = obs.nodes[told.node]
    was_unknown = node.state == "unknown"
    is_return = not was_unknown and told.incarnation > 1
    joined = replace(
        node,
        state="present",
        incarnation=told.incarnation,
        joined_us=obs.now_us,
        overdue_us=None,
        due_us=None,
        evict=None,
        late_us=None,
        num_refusals=0,
        returned_us=obs.now_us if is_return else node.returned_us,
    )
    obs = with_node(obs, told.node, joined)
    if not was_unknown or node.slot is None:
        return obs
    return _rejoined(obs, told.node, told.attempt)


def _rejoined(obs: Observation, name: NodeId, attempt: Attempt) -> Observation:
    """A holder is there again. The silence of the gang counts from the last of them on, whichever spares are still
    waited for."""
    if obs.is_gang_active and attempt != obs.attempt:
        reason = f"node {name} rejoined without the workers of attempt {obs.attempt}"
        return open_incident(obs, plain_incident(obs, "coordinator", reason, node=name))
    return replace(obs, watch_us=obs.now_us)


def on_lost(obs: Observation, told: NodeLost) -> Observation:
    node = obs.nodes.get(told.node)
    if node is None or told.incarnation != node.incarnation or node.state == "absent":
        return obs
    if node.state == "coming":
        return schedule_agent(obs, told.node, num_refusals=node.num_refusals + 1)
    at_us = node.late_us if node.late_us is not None else obs.now_us
    return lose_node(obs, told.node, told.reason, at_us=at_us)


def on_provision_failed(obs: Observation, told: ProvisionFailed) -> Observation:
    node = obs.nodes.get(told.node)
    if node is None or told.incarnation != node.incarnation or node.state != "coming":
        return obs
    return schedule_agent(obs, told.node, num_refusals=node.num_refusals + 1)


def on_late(obs: Observation, late: tuple[Late, ...]) -> Observation:
    """The tick's list replaces the former one: who is absent from it has beaten."""
    listed = {entry.node: entry.since_us for entry in late}
    for name in sorted(set(obs.late) - set(listed)):
        obs = with_node(obs, name, replace(obs.nodes[name], late_us=None))
    for name, since_us in sorted(listed.items()):
        node = obs.nodes.get(name)
        if node is not None and node.state == "present":
            late_us = min(obs.now_us, max(since_us, node.joined_us, obs.watch_us))
            obs = with_node(obs, name, replace(node, late_us=late_us))
    return obs


def elapse(obs: Observation) -> Observation:
    """What silence until now means: late agents, and those of the former term, are lost."""
    obs = _give_up_overdue(obs)
    limit_us = obs.config.heartbeat_limit_us
    for name, since_us in sorted(obs.late.items()):
        if obs.now_us >= since_us + limit_us:
            obs = lose_node(obs, name, f"node {name} sent no heartbeat for {limit_us / 1e6:g} s", at_us=since_us)
    if obs.unknown and obs.now_us >= obs.rejoin_by_us:
        for name in sorted(obs.unknown, key=obs.unknown.__getitem__):
            rejoin_us = obs.config.rejoin_us
            reason = f"node {name} did not rejoin within {rejoin_us / 1e6:g} s" if rejoin_us else FORMER_TERM_ENDED
            obs = lose_node(obs, name, reason, at_us=obs.now_us, is_takeover=True)
        return _without_gang(obs) if len(obs.vacant) == len(obs.holders) else obs
    return obs


def _give_up_overdue(obs: Observation) -> Observation:
    """An ordered agent that has neither joined nor failed in time is ended and ordered again."""
    if obs.coming_check_us is None or (obs.coming and obs.now_us < obs.coming_check_us):
        return obs
    for name, overdue_us in sorted(obs.coming.items()):
        if obs.now_us >= overdue_us:
            node, why = obs.nodes[name], "its agent did not join in time"
            given_up = replace(node, state="absent", evict=why, overdue_us=None, num_refusals=node.num_refusals + 1)
            obs = with_node(obs, name, given_up)
    return replace(obs, coming_check_us=min(obs.coming.values(), default=None))


def _without_gang(obs: Observation) -> Observation:
    """No holder outlived the former coordinator, so the nodes that are there first form the gang again, each with the
    slot that it had."""
    for name, node in obs.nodes.items() if obs.holders else ():
        if node.slot != node.former_slot or node.slot is not None:
            obs = with_node(obs, name, replace(node, slot=None, former_slot=node.slot))
    return replace(obs, placed_epoch=Epoch(0))


def evictions(obs: Observation) -> tuple[Effect, ...]:
    """End every agent that was given up."""
    owed = sorted(obs.evicting, key=lambda name: obs.nodes[name].order)
    return tuple(
        Evict(fence=obs.fence, node=name, incarnation=obs.nodes[name].incarnation, reason=obs.evicting[name])
        for name in owed
    )


def provisions(obs: Observation) -> tuple[Effect, ...]:
    """Order an agent wherever one is due."""
    due = sorted((obs.nodes[name].order, name) for name, due_us in obs.due.items() if due_us <= obs.now_us)
    return tuple(Provision(fence=obs.fence, node=name, incarnation=obs.nodes[name].incarnation + 1) for _, name in due)


def placement(obs: Observation) -> tuple[Effect, ...]:
    """The first gang, once enough nodes are there; in a later term, the gang as it stands, for the new body."""
    if obs.unknown or obs.placed_epoch == obs.epoch:
        return ()
    if obs.holders:
        return (Place(fence=obs.fence, holders=tuple(obs.holders[slot] for slot in sorted(obs.holders))),)
    if not obs.are_commits_known:
        return ()
    if len(obs.spares) < obs.config.num_slots:
        return ()
    slots = {name: obs.nodes[name].former_slot for name in obs.spares}
    former = {name: slot for name, slot in slots.items() if slot is not None}
    gang = first_gang(obs.spares, num_slots=obs.config.num_slots, former=former)
    return () if gang is None else (Place(fence=obs.fence, holders=gang),)


def evicted(obs: Observation, effect: Evict) -> Observation:
    node = obs.nodes.get(effect.node)
    if node is None or node.evict is None or node.incarnation != effect.incarnation:
        return obs
    obs = with_node(obs, effect.node, replace(node, evict=None))
    incident = obs.incident
    if incident is not None and incident.decided_us is None and node.slot is not None:
        obs = replace(obs, incident=replace(incident, decided_us=obs.now_us))
    return schedule_agent(obs, effect.node, num_refusals=node.num_refusals)


def provisioned(obs: Observation, effect: Provision) -> Observation:
    node = obs.nodes.get(effect.node)
    if node is None or node.due_us is None or effect.incarnation != node.incarnation + 1:
        return obs
    overdue_us = obs.now_us + patience_us(node.num_refusals, start_us=obs.config.hang_floors.start_us)
    coming = replace(node, state="coming", incarnation=effect.incarnation, due_us=None, overdue_us=overdue_us)
    check_us = overdue_us if obs.coming_check_us is None else min(obs.coming_check_us, overdue_us)
    return replace(with_node(obs, effect.node, coming), coming_check_us=check_us)


def placed(obs: Observation, effect: Place) -> Observation:
    obs = replace(obs, placed_epoch=obs.epoch)
    if obs.holders or not all(name in obs.spares for name in effect.holders):
        return obs
    for slot, name in enumerate(effect.holders):
        obs = with_node(obs, name, replace(obs.nodes[name], slot=Slot(slot)))
    return obs


def deadlines(obs: Observation) -> list[int]:
    """Times at which `elapse` or `provisions` has something to do."""
    times = [since_us + obs.config.heartbeat_limit_us for since_us in obs.late.values()]
    times.extend(obs.due.values())
    if obs.coming_check_us is not None:
        times.append(obs.coming_check_us)
    if obs.unknown:
        times.append(obs.rejoin_by_us)
    return times
