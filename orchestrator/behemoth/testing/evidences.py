"""Hypothesis strategies for evidence and effects: anything at all, in any order, possible or not.

An open loop, for the property that fold and decide are total. Imports hypothesis, as only its neighbour `strategies`
does, which has runs and their histories: a closed loop.
"""

from __future__ import annotations

from hypothesis import strategies as st

from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Slot, Step, WriteId
from behemoth.state.config import WorkPhase
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    CommitRef,
    Delete,
    Effect,
    Evict,
    Place,
    Provision,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import (
    Asked,
    CommitsFound,
    Committed,
    Decided,
    Deleted,
    Evidence,
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    Late,
    NodeJoined,
    NodeLost,
    Pinned,
    Progress,
    ProvisionFailed,
    RestoreFailed,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    TermBegan,
    Tick,
    WorkerFailed,
)
from behemoth.state.fence import Fence
from behemoth.testing.strategies import MAX_NODES, SECOND_US

PHASES: tuple[WorkPhase, ...] = ("start", "restore", "first_step", "step", "eval", "save")

_nodes = st.sampled_from([NodeId(f"n{order}") for order in range(MAX_NODES + 1)])
_attempts = st.integers(0, 4).map(Attempt)
_incarnations = st.integers(0, 4)
_steps = st.integers(0, 70).map(Step)
_write_ids = st.builds(lambda a, n: WriteId(f"a{a}-{n}"), st.integers(0, 3), st.integers(0, 4))
_commits = st.builds(CommitRef, step=_steps, write_id=_write_ids, size_bytes=st.integers(0, 9))
_reasons = st.sampled_from(["", "reason"])
_times_us = st.integers(0, 200 * SECOND_US)
_progress = st.builds(
    Progress,
    attempt=_attempts,
    step=_steps,
    furthest_step=_steps,
    at_us=_times_us,
    phase=st.sampled_from(PHASES),
    phase_since_us=_times_us,
    slowest_step_us=st.sampled_from([0, 1, SECOND_US]),
    stall_us=st.sampled_from([0, SECOND_US]),
    next_report_by_us=st.none() | _times_us,
)
_fences = st.builds(Fence, run_uid=st.just(RunUid("run")), epoch=st.integers(0, 3).map(Epoch), attempt=_attempts)


def effects() -> st.SearchStrategy[Effect]:
    """Any effect at all, with any fence of the run."""
    slots = st.integers(0, 3).map(Slot)
    return st.one_of(
        st.builds(Provision, fence=_fences, node=_nodes, incarnation=_incarnations),
        st.builds(Evict, fence=_fences, node=_nodes, incarnation=_incarnations, reason=_reasons),
        st.builds(Place, fence=_fences, holders=st.lists(_nodes, max_size=4, unique=True).map(tuple)),
        st.builds(Replace, fence=_fences, slot=slots, node=_nodes, spare=_nodes, reason=_reasons),
        st.builds(Start, fence=_fences, restore=st.none() | _commits, reason=_reasons),
        st.builds(Stop, fence=_fences, reason=_reasons),
        st.builds(Save, fence=_fences, step=_steps, write_id=_write_ids, is_last=st.booleans()),
        st.builds(Agree, fence=_fences, write_id=_write_ids),
        st.builds(Commit, fence=_fences, step=_steps, write_id=_write_ids),
        st.builds(Abort, fence=_fences, write_id=_write_ids, reason=_reasons),
        st.builds(Reject, fence=_fences, commit=_commits, reason=_reasons),
        st.builds(Delete, fence=_fences, commits=st.lists(_commits, max_size=2).map(tuple)),
        st.builds(Close, fence=_fences, outcome=st.sampled_from(["failed", "suspended"]), reason=_reasons),
    )


def evidences() -> st.SearchStrategy[Evidence]:
    """Anything that a body could ever say after RunOpened, true or not: unknown nodes, attempts of the future, foreign
    writes. `Decided` is not among it: only the brain says that."""
    return st.one_of(
        st.builds(TermBegan, epoch=st.integers(0, 3).map(Epoch)),
        st.builds(
            CommitsFound,
            commits=st.lists(_commits, max_size=3).map(tuple),
            others=st.lists(_write_ids, max_size=2).map(tuple),
        ),
        st.builds(NodeJoined, node=_nodes, incarnation=_incarnations, attempt=_attempts),
        st.builds(NodeLost, node=_nodes, incarnation=_incarnations, reason=_reasons),
        st.builds(ProvisionFailed, node=_nodes, incarnation=_incarnations, reason=_reasons),
        st.builds(
            Tick,
            late=st.lists(st.builds(Late, node=_nodes, since_us=_times_us), max_size=3).map(tuple),
            progress=st.none() | _progress,
        ),
        st.builds(GangUp, attempt=_attempts),
        st.builds(GangRestored, attempt=_attempts, step=_steps, num_from_memory=st.integers(0, 8)),
        st.builds(GangGone, attempt=_attempts),
        st.builds(GangFinished, attempt=_attempts),
        st.builds(
            WorkerFailed,
            node=_nodes,
            attempt=_attempts,
            rank=st.integers(0, 9).map(Rank),
            exit_code=st.none() | st.sampled_from([0, 1]),
            signal=st.none() | st.just(9),
            last_lines=_reasons,
        ),
        st.builds(
            RestoreFailed,
            attempt=_attempts,
            node=_nodes,
            write_id=_write_ids,
            reason=_reasons,
            is_corrupt=st.booleans(),
        ),
        st.builds(SavePassed, attempt=_attempts, write_id=_write_ids, step=_steps),
        st.builds(SaveArmed, attempt=_attempts, write_id=_write_ids),
        st.builds(SaveStaged, attempt=_attempts, write_id=_write_ids),
        st.builds(SaveWritten, attempt=_attempts, write_id=_write_ids),
        st.builds(SaveFailed, write_id=_write_ids, reason=_reasons),
        st.builds(Committed, commit=_commits),
        st.builds(
            Deleted,
            write_ids=st.lists(_write_ids, max_size=2).map(tuple),
            kept=st.lists(_write_ids, max_size=2).map(tuple),
        ),
        st.builds(Pinned, write_ids=st.lists(_write_ids, max_size=2).map(tuple)),
        st.builds(Asked, request=st.sampled_from(["suspend", "stop", "resume"])),
    )


def decided() -> st.SearchStrategy[Decided]:
    """Decisions that this brain need not have taken: a journal of another version, say."""
    return st.builds(Decided, effects=st.lists(effects(), max_size=3).map(tuple))
