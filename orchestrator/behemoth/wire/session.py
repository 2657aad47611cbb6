"""What an agent and the workers of its own node say to each other, over a socket pair that the worker inherits.

A message may carry open descriptors beside its bytes (staging memory). Neighbours: `ends` has the two ends of the
pair; `reports` and `commands` are the other wire, between agent and coordinator.
"""

from __future__ import annotations

import signal
from typing import Final, Literal, TypeAlias

import msgspec

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.state.config import WorkPhase
from behemoth.wire.message import Message

WORKER_FD_VARIABLE: Final = "BEHEMOTH_WORKER_FD"
"""Environment of a worker: number of the descriptor of its end of the session."""

DUMP_SIGNAL: Final = signal.SIGRTMIN + 7
"""Makes a joined worker write the Python stacks of all threads to its log. A real-time signal, because programs that
handle signals at all take the classic ones (SIGUSR1, SIGUSR2, SIGTERM)."""


def worker_title(rank: Rank) -> str:
    """What a forked worker calls itself in process listings (PR_SET_NAME keeps 15 bytes)."""
    return f"rank-{rank}"


# Worker -> agent


class Join(Message, frozen=True, kw_only=True):
    """First message of a worker."""

    major: int
    minor: int


class Declare(Message, frozen=True, kw_only=True):
    """The arrays of the program, equal on every rank (`behemoth.checkpoint.layout`), and the size of the staging memory
    that this rank needs. Asks for the memory and for the restored state in it; Ready answers. Said again with
    `must_read` when what Ready pointed at was damaged: the state shall be read from the store and checked. `frozen`
    are the arrays, counted in the layout's order, that are not meant to move: no part of the layout, so that a program
    may declare it later and still have its checkpoints. `intake` says how a checkpoint of other arrays becomes these
    (`behemoth.checkpoint.conversion`); empty: not at all."""

    layout: bytes
    digest: str
    arena_bytes: int
    must_read: bool = False
    frozen: tuple[int, ...] = ()
    intake: bytes = b""


class Standing(Message, frozen=True, kw_only=True):
    """The rank has its state and stands at `step` completed steps."""

    step: Step


class Report(Message, frozen=True, kw_only=True):
    """`step` is completed. Reports that the socket could not take at once are merged: `tokens` is the sum since the
    last Report, `slowest_step_us` the longest, the rest the newest."""

    step: Step
    slowest_step_us: int
    tokens: int = 0
    loss: float | None = None


class InPhase(Message, frozen=True, kw_only=True):
    """What the rank is doing from now on."""

    phase: WorkPhase


class Armed(Message, frozen=True, kw_only=True):
    """The rank knows of the save and promises to save at its step, which it has not passed."""

    write_id: WriteId


class Missed(Message, frozen=True, kw_only=True):
    """The rank had passed the step of the save; it stands at `step`."""

    write_id: WriteId
    step: Step


class Staging(Message, frozen=True, kw_only=True):
    """The copy into `generation` has begun, as filling `sequence` of the staging memory, and may be followed. Sent for
    large states only; Staged or StagingFailed comes after it. `updated_step` as in Staged."""

    write_id: WriteId
    generation: int
    sequence: int
    updated_step: Step | None = None


class Staged(Message, frozen=True, kw_only=True):
    """The copy is complete and sealed in `generation`. `updated_step` is the last step in which the program announced
    an update, the restored one when it announced none yet."""

    write_id: WriteId
    generation: int
    updated_step: Step | None = None


class StagingFailed(Message, frozen=True, kw_only=True):
    """The rank could not copy its state; it goes on training."""

    write_id: WriteId
    reason: str


class Stalled(Message, frozen=True, kw_only=True):
    """Training was blocked in a save for `stall_us`, told at the end of that time, whatever became of the save."""

    stall_us: int


class StepsEnded(Message, frozen=True, kw_only=True):
    """The rank makes no further step: an exit code of 0 is in order from now on."""


FromWorker: TypeAlias = (
    Join
    | Declare
    | Standing
    | Report
    | InPhase
    | Armed
    | Missed
    | Staging
    | Staged
    | StagingFailed
    | Stalled
    | StepsEnded
)


# Agent -> worker


class Assigned(Message, frozen=True, kw_only=True):
    """Answers Join: the rank's place and what the run file says."""

    rank: Rank
    world_size: int
    local_rank: int
    attempt: Attempt
    mesh: dict[str, int]
    args: dict[str, bool | int | float | str]
    total_steps: Step
    wait_limit_us: int
    """Longest wait of the rank for an answer of its agent."""
    sharding: Literal["array", "box"] = "array"
    """How shards are cut in the layout that the rank declares (`Layout.sharding`)."""


class Ready(Message, frozen=True, kw_only=True):
    """Answers Declare, with the descriptor of the staging memory. The state to take over at `step` lies in
    `generation`, or in the files below `folder` when that is given; neither: a fresh beginning at step 0. `is_cold`:
    the page cache holds little of these files. `is_checked`: the CRCs were right just now, else the rank checks them.
    `threads` is the rank's share of the node's threads for checkpoints. `left_out` are arrays, counted in the layout's
    order, for which there is nothing: they stay as the program has them."""

    step: Step
    generation: int | None
    folder: str = ""
    is_cold: bool = False
    is_checked: bool = False
    threads: int = 1
    left_out: tuple[int, ...] = ()


class SaveDue(Message, frozen=True, kw_only=True):
    """Save when `step` is completed; when `is_last`, wait there for Proceed."""

    step: Step
    write_id: WriteId
    is_last: bool


class Grant(Message, frozen=True, kw_only=True):
    """Copy into this generation for this write. Without it `save` waits: for as long as it takes at a last save, for a
    moment at any other, which is then given up."""

    write_id: WriteId
    generation: int


class Proceed(Message, frozen=True, kw_only=True):
    """All ranks of the run know of the last save."""

    write_id: WriteId


class SaveOff(Message, frozen=True, kw_only=True):
    """The write is given up."""

    write_id: WriteId
    reason: str


class SaveSafe(Message, frozen=True, kw_only=True):
    """The write is committed."""

    write_id: WriteId


class Refusal(Message, frozen=True, kw_only=True):
    """The worker cannot take part; the program should end with this reason."""

    reason: str
    hint: str = ""


ToWorker: TypeAlias = Assigned | Ready | SaveDue | Grant | Proceed | SaveOff | SaveSafe | Refusal

FROM_WORKER: Final = msgspec.msgpack.Decoder(FromWorker)
TO_WORKER: Final = msgspec.msgpack.Decoder(ToWorker)
