"""Faults that a drill injects from outside, and the sentences in which people order them.

The sentences are the same in the run file (`spec.drill`) and on the command line (`--drill`). Ranks and nodes count
from 0; node N of the gang is the one that holds slot N when the fault strikes, the numbers after those are the spares.
A fault strikes as soon as every rank has completed its step. How to inflict a fault is the business of `behemoth.app`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRank:
    """SIGKILL of one worker process."""

    rank: Rank
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseNode:
    """The agent and everything below it are killed, as when a machine loses its power."""

    node: int
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeNode:
    """SIGSTOP of everything on a node: only missing beats tell."""

    node: int
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class HangRank:
    """One worker stops stepping without dying."""

    rank: Rank
    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptNewestCheckpoint:
    """One bit of the newest committed checkpoint is flipped on disk."""

    step: Step


Fault: TypeAlias = KillRank | LoseNode | FreezeNode | HangRank | CorruptNewestCheckpoint

EXAMPLES = (
    "kill rank 1 at step 40",
    "lose node 2 at step 80",
    "freeze node 1 at step 70",
    "hang rank 0 at step 60",
    "corrupt newest checkpoint at step 90",
)
FAULT_PATTERN = (
    r"((kill|hang) rank [0-9]{1,9}|(lose|freeze) node [0-9]{1,9}|corrupt newest checkpoint) at step [0-9]{1,12}"
)
FAULT_EXPECTED = "a fault such as 'kill rank 1 at step 40' or 'lose node 2 at step 80'"
_WORDS = ("kill", "hang", "rank", "lose", "freeze", "node", "corrupt", "newest", "checkpoint", "at", "step")
_LONGEST_TEXT = 80


def parse_fault(text: str, *, name: str = "drill") -> Fault:
    """Read one fault.

    `name` opens the message of an error. Raises Invalid; its hint is the nearest sentence, or all forms there are.
    """
    words = text.split() if len(text) <= _LONGEST_TEXT else []
    if not re.fullmatch(FAULT_PATTERN, text):
        shown = repr(text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}...")
        raise Invalid(f"{name}: expected {FAULT_EXPECTED}, got {shown}", hint=_hint(words), code="drill-grammar")
    step = Step(int(words[-1]))
    match words[0]:
        case "kill":
            return KillRank(rank=Rank(int(words[2])), step=step)
        case "hang":
            return HangRank(rank=Rank(int(words[2])), step=step)
        case "lose":
            return LoseNode(node=int(words[2]), step=step)
        case "freeze":
            return FreezeNode(node=int(words[2]), step=step)
        case _:
            return CorruptNewestCheckpoint(step=step)


def format_fault(fault: Fault) -> str:
    """The sentence that `parse_fault` reads back."""
    match fault:
        case KillRank(rank=rank, step=step):
            return f"kill rank {rank} at step {step}"
        case HangRank(rank=rank, step=step):
            return f"hang rank {rank} at step {step}"
        case LoseNode(node=node, step=step):
            return f"lose node {node} at step {step}"
        case FreezeNode(node=node, step=step):
            return f"freeze node {node} at step {step}"
        case CorruptNewestCheckpoint(step=step):
            return f"corrupt newest checkpoint at step {step}"
        case _:
            assert_never(fault)


def misaim(fault: Fault, *, num_ranks: int, num_nodes: int, total_steps: int) -> str:
    """Why a fault cannot strike a run of this size, as `expected ..., got ...`; empty when it can.

    `num_nodes` counts the spares too. A fault must strike before the last step, or there is nothing left to recover.
    """
    if not 1 <= fault.step < total_steps:
        return f"expected a step from 1 to {total_steps - 1}, got {fault.step}"
    match fault:
        case KillRank(rank=rank) | HangRank(rank=rank):
            return "" if rank < num_ranks else f"expected a rank from 0 to {num_ranks - 1}, got {rank}"
        case LoseNode(node=node) | FreezeNode(node=node):
            return "" if node < num_nodes else f"expected a node from 0 to {num_nodes - 1}, got {node}"
        case CorruptNewestCheckpoint():
            return ""
        case _:
            assert_never(fault)


def _hint(words: list[str]) -> str:
    """The sentence with each word replaced by the nearest known one, when that makes a sentence."""
    nearest = [w if w.isdigit() else next(iter(difflib.get_close_matches(w.lower(), _WORDS, n=1)), w) for w in words]
    if re.fullmatch(FAULT_PATTERN, " ".join(nearest)):
        return f"did you mean {' '.join(nearest)!r}?"
    return "faults are: " + "; ".join(EXAMPLES)
