"""What a failure means: which explanation wins, whether the program or a machine is to blame, and when to stop.

Pure. Neighbours: `spares` weighs a node's strikes; `behemoth.reconcile.incidents` keeps what is open.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from behemoth.base.ids import NodeId, Step
from behemoth.state.evidence import WorkerFailed
from behemoth.state.observation import Cause, Incident, Tally

_RANK_OF_CAUSE = {cause: rank for rank, cause in enumerate(get_args(Cause))}
_MAX_SEEN = 16
_MAX_LINE = 300
_TRACEBACK = "Traceback (most recent call last):"
_FACTOR_OF_ANY = 3
"""A program that dies of something else each time, always before it has regained its steps, is stopped too."""


def more_root_like(one: Incident, other: Incident) -> Incident:
    """The better explanation of the same attempt's end, with the earliest sign and the earliest time to act of both.

    A lost node explains a broken connection in its peers, a signal explains an exit code elsewhere. Equals: the first
    one told stays.
    """
    best = other if _RANK_OF_CAUSE[other.cause] < _RANK_OF_CAUSE[one.cause] else one
    return msgspec.structs.replace(
        best,
        at_us=min(one.at_us, other.at_us),
        told_us=min(one.told_us, other.told_us),
        act_at_us=min(one.act_at_us, other.act_at_us),
        decided_us=one.decided_us if other.decided_us is None else other.decided_us,
    )


def incident_of_worker(failed: WorkerFailed, *, first_sign_us: int, now_us: int, settle_us: int) -> Incident:
    """A signal speaks for itself; a plain exit may be the echo of something worse, which gets `settle_us` to show.

    Only an exit has a signature: the last line before a signal is whatever the worker happened to print.
    `first_sign_us`: when the gang was last known to be well; the rank itself may have been well for longer.
    """
    line = last_line(failed.last_lines)
    is_signal = failed.signal is not None
    how = f"signal {failed.signal}" if is_signal else f"exit code {failed.exit_code}"
    if failed.exit_code == 0:
        how += " before its last step"
    told = f"rank {failed.rank} on node {failed.node} ended with {how}" + (f": {line}" if line else "")
    return Incident(
        cause="signal" if is_signal else "exit",
        node=failed.node,
        rank=failed.rank,
        reason=told,
        at_us=first_sign_us if failed.quiet_us is None else max(first_sign_us, now_us - failed.quiet_us),
        told_us=now_us,
        act_at_us=now_us if is_signal else now_us + settle_us,
        signature="" if is_signal or not line else f"{how}: {line}",
    )


def last_line(text: str) -> str:
    """What a worker's last lines come to, cut to what fits a message: the exception of the last traceback, whatever was
    printed after it, else the last line with anything on it."""
    lines = [line for line in text.splitlines() if line.strip()]
    for at in reversed(range(len(lines))):
        if lines[at].startswith(_TRACEBACK):
            exception = next((line for line in lines[at + 1 :] if not line[0].isspace()), None)
            if exception is not None:
                return exception.strip()[:_MAX_LINE]
    return lines[-1].strip()[:_MAX_LINE] if lines else ""


def tally_after(tally: Tally, incident: Incident, *, best_step: Step, step: Step, is_stuck: bool) -> Tally:
    """The tally once `incident` ended an attempt at `step`; `is_stuck`: that attempt completed no step at all.

    Machines fail independently of each other while lost steps are repeated, so not every failure without progress
    is the same one: it is when it looks the same, or comes no earlier than the one before it.
    """
    if best_step > tally.best_step:
        return Tally(num_same=1, num_any=1, best_step=best_step, latest=incident, latest_step=step)
    is_same = is_stuck or step >= tally.latest_step or _looks_same(incident, tally.latest)
    return Tally(
        num_same=tally.num_same + 1 if is_same else 1,
        num_any=tally.num_any + 1,
        best_step=tally.best_step,
        latest=incident,
        latest_step=step,
    )


def is_hopeless(tally: Tally, *, max_failures: int) -> bool:
    """The same failure too often, or too many in a row of any kind."""
    return tally.num_same >= max_failures or tally.num_any >= _FACTOR_OF_ANY * max_failures


def _looks_same(one: Incident, other: Incident | None) -> bool:
    if other is None or one.cause != other.cause:
        return False
    return one.rank == other.rank or (one.signature != "" and one.signature == other.signature)


def is_of_program(incident: Incident, seen: tuple[tuple[str, NodeId], ...]) -> bool:
    """Whether the same failure was seen on another node: then no node is to blame ("same stack on two nodes =
    software", design/recovery.md)."""
    return any(sign == incident.signature and node != incident.node for sign, node in seen if sign)


def seen_after(incident: Incident, seen: tuple[tuple[str, NodeId], ...]) -> tuple[tuple[str, NodeId], ...]:
    """`seen` with this failure, bounded."""
    if not incident.signature or incident.node is None:
        return seen
    return (*seen, (incident.signature, incident.node))[-_MAX_SEEN:]
