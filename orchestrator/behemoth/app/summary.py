"""How a run ended: `summary.json`, a versioned document, with the values that the command line prints.

The digest is computed from the store at the end, not remembered: it shows that the newest checkpoint is readable. Times
of a fault count from its first sign, each phase by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from behemoth.app.history import History
from behemoth.app.restore_book import RestoreRow
from behemoth.app.save_book import SaveRow
from behemoth.base.errors import BehemothError, Corrupt, Denied, Internal, NotFound, Timeout, Unavailable
from behemoth.base.ids import NodeId, Rank, Step, WriteId
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import require_there
from behemoth.checkpoint.reader import digest
from behemoth.ports import ObjectStore
from behemoth.reconcile.ledger import FaultRow, books
from behemoth.state.effect import CommitRef, Outcome
from behemoth.state.observation import Cause


class LedgerTable(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds x ranks by what they were spent on; they add up to `wall_s` x `num_ranks`."""

    wall_s: float
    num_ranks: int
    useful_s: float
    checkpoint_stall_s: float
    detect_s: float
    restart_s: float
    restore_s: float
    recomputed_s: float
    idle_s: float


class FaultTable(msgspec.Struct, frozen=True, kw_only=True):
    """One fault; seconds of each phase, None for one that was not reached before the next fault or the end.

    `to_first_step_s` and `to_regained_s` count from the fault's first sign.
    """

    cause: Cause
    node: NodeId | None
    rank: Rank | None
    reason: str
    at_us: int
    detect_s: float
    restart_s: float | None
    restore_s: float | None
    to_first_step_s: float | None
    to_regained_s: float | None


class CheckpointTable(msgspec.Struct, frozen=True, kw_only=True):
    """One committed save. `seconds` runs from the step's end to the commit."""

    step: Step
    write_id: WriteId
    size_bytes: int
    seconds: float | None
    bytes_per_s: float | None


class DrainTable(msgspec.Struct, frozen=True, kw_only=True):
    """How far the second store was at the end of a run. `step`: of its newest checkpoint; `trouble`: why the last one
    of the run is not there."""

    url: str
    step: Step | None
    is_complete: bool
    is_required: bool
    """Whether the run says that a checkpoint is durable only there."""
    trouble: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is `sha256:...` over the newest commit; None when nothing was committed, or when the store could not be
    read, which `digest_trouble` says then."""

    name: str
    outcome: Outcome | None
    """None: this process ended before the run did."""
    reason: str
    step: Step
    total_steps: Step
    num_attempts: int
    digest: str | None
    ledger: LedgerTable
    faults: tuple[FaultTable, ...]
    num_faults: int
    restores: tuple[RestoreRow, ...]
    checkpoints: tuple[CheckpointTable, ...]
    drain: DrainTable | None = None
    """None for a run without a second store."""
    digest_trouble: str = ""
    format: int = 1

    def document(self) -> dict[str, object]:
        """Plain values, as `summary.json` holds them."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found


def summarize(
    name: str,
    history: History,
    store: ObjectStore,
    *,
    url: str,
    now_us: int,
    cancelled: Callable[[], bool],
    drain: DrainTable | None = None,
) -> Summary:
    """Reads the newest checkpoint back from the store, which lies at `url`: blocks for as long as that takes, or until
    an array after `cancelled`, which is then a Conflict. Raises Corrupt when it is damaged."""
    observation = history.observation
    if observation is None:
        raise Internal(f"run {name}: expected an opened run to summarize, got an empty journal")
    found = read_back(store, observation.commits, url=url, cancelled=cancelled)
    return Summary(
        name=name,
        outcome=observation.outcome,
        reason=observation.close_reason,
        step=found.newest.step if found.newest is not None else Step(0),
        total_steps=observation.config.total_steps,
        num_attempts=observation.attempt,
        digest=found.digest,
        ledger=_ledger(history, now_us),
        faults=tuple(_fault(row) for row in history.books.ledger.faults) if history.books.ledger else (),
        num_faults=history.books.ledger.num_faults if history.books.ledger else 0,
        restores=tuple(history.restores.rows),
        checkpoints=tuple(_checkpoint(row) for row in history.saves.rows),
        drain=drain,
        digest_trouble=found.trouble,
    )


class ReadBack(NamedTuple):
    """The newest commit, as far as is known, and its digest; of a store that cannot be read, why."""

    newest: CommitRef | None
    digest: str | None
    trouble: str = ""


def read_back(
    store: ObjectStore, committed: Sequence[CommitRef], *, url: str, cancelled: Callable[[], bool]
) -> ReadBack:
    """`committed` is what the run knows of, oldest first: a store that is away shows nothing, and raises nothing.
    Raises Corrupt and NotFound for damage in a store that is there, Conflict when `cancelled`."""
    try:
        newest = latest(store)
        if newest is not None:
            try:
                return ReadBack(newest, f"sha256:{digest(store, open_commit(store, newest), cancelled=cancelled)}")
            except (Corrupt, NotFound):
                require_there(store, url=url)
                raise
        if not committed:
            return ReadBack(None, None)
        require_there(store, url=url)
        trouble = f"checkpoint store {url}: expected the checkpoint of step {committed[-1].step}, got none"
    except (Unavailable, Timeout, Denied) as error:
        trouble = error.message
    return ReadBack(committed[-1] if committed else None, None, trouble)


def seen_again(summary: Summary, opened: AbstractContextManager[ObjectStore], *, url: str) -> Summary:
    """The summary of a run that ended some time ago: with its digest only while the store at `url` still shows the
    checkpoint that it is of, else with what is wrong. Reads names and commit records, no data: of damage it tells
    nothing. Raises nothing for a store that is away, empty or not to be opened."""
    if summary.digest is None:
        return summary
    try:
        with opened as store:
            newest = latest(store)
            if newest is not None and newest.step == summary.step:
                return summary
            require_there(store, url=url)
        got = "none" if newest is None else f"that of step {newest.step} as the newest"
        trouble = f"checkpoint store {url}: expected the checkpoint of step {summary.step}, got {got}"
    except BehemothError as error:
        trouble = error.message
    return replace(summary, digest=None, digest_trouble=trouble)


def _ledger(history: History, now_us: int) -> LedgerTable:
    ledger = history.books.ledger
    if ledger is None:
        raise Internal("ledger: expected one for an opened run, got none")
    buckets = books(ledger, now_us)
    return LedgerTable(
        wall_s=(max(now_us, ledger.mark_us) - ledger.opened_us) / 1e6,
        num_ranks=ledger.num_ranks,
        useful_s=buckets.useful / 1e6,
        checkpoint_stall_s=buckets.checkpoint_stall / 1e6,
        detect_s=buckets.detect / 1e6,
        restart_s=buckets.restart / 1e6,
        restore_s=buckets.restore / 1e6,
        recomputed_s=buckets.recomputed / 1e6,
        idle_s=buckets.idle / 1e6,
    )


def _fault(row: FaultRow) -> FaultTable:
    return FaultTable(
        cause=row.cause,
        node=row.node,
        rank=row.rank,
        reason=row.reason,
        at_us=row.at_us,
        detect_s=(row.detected_us - row.at_us) / 1e6,
        restart_s=_span_s(row.started_us, row.restarted_us),
        restore_s=_span_s(row.restarted_us, row.restored_us),
        to_first_step_s=_span_s(row.at_us, row.first_step_us),
        to_regained_s=_span_s(row.at_us, row.regained_us),
    )


def _checkpoint(row: SaveRow) -> CheckpointTable:
    seconds = _span_s(row.reached_us, row.committed_us)
    return CheckpointTable(
        step=row.step,
        write_id=row.write_id,
        size_bytes=row.size_bytes,
        seconds=seconds,
        bytes_per_s=row.size_bytes / seconds if seconds else None,
    )


def _span_s(from_us: int | None, to_us: int | None) -> float | None:
    return (to_us - from_us) / 1e6 if from_us is not None and to_us is not None else None
