"""The leader's work on checkpoints: commit, reject, delete, clean up. One thread, because one leader commits.

Everything here blocks on the store, so it runs beside the event loop, and what comes of it is told as evidence. A
save that cannot be committed is a SaveFailed, never an exception into the run: training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Protocol

from behemoth.base.clock import Clock
from behemoth.base.errors import BehemothError, Corrupt, Unavailable
from behemoth.base.ids import Attempt, RunUid, Step, WriteId
from behemoth.checkpoint import commit_log
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.owner import refuse_other, require_own
from behemoth.checkpoint.paths import DELETING, PINS, REJECTED, STEPS, write_of_key, write_of_marker
from behemoth.checkpoint.pins import pinned_writes
from behemoth.checkpoint.receipt import Receipt
from behemoth.ports import ObjectStore, SavesTo, UploadsParts
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Committed, Deleted, Evidence, Pinned, SaveFailed
from behemoth.state.observation import Observation

_log = logging.getLogger(__name__)


class Drains(Protocol):
    """Copies commits to a second store. It is told what the store has and what is new, and says what must be kept."""

    def found(self, commits: Sequence[CommitRef]) -> None:
        """The intact commits at the begin of a term, oldest first."""
        ...

    def committed(self, commit: CommitRef) -> None:
        """A new one; before the brain is told."""
        ...

    def held(self) -> frozenset[WriteId]:
        """Commits that nobody may delete yet."""
        ...


class CheckpointDesk:
    """Owns its thread until `close`. `tell` is called from that thread; `run_name` goes into commits as provenance.
    `unsure` are writes of former terms (`unsure_writes`). Of `threads` a save is proven; the desk's own is enough where
    few ranks have written."""

    def __init__(
        self,
        store: SavesTo,
        *,
        run_name: str,
        run_uid: RunUid | None = None,
        url: str = "",
        clock: Clock,
        tell: Callable[[Evidence], None],
        drains: Drains | None = None,
        unsure: Collection[WriteId] = (),
        threads: int = 1,
    ) -> None:
        self._store = store
        self._threads = threads
        self._drains = drains
        self._run_name = run_name
        self._run_uid = run_uid
        self._url = url
        self._clock = clock
        self._tell = tell
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-desk")
        self._previous: CommitRecord | None = None
        self._to_reject: dict[Step, tuple[CommitRef, str]] = {}
        self._to_delete: list[CommitRef] = []
        self._unsure = set(unsure)
        self._pinned: frozenset[WriteId] = frozenset()
        """As it was last told, with what is held for a drain: to the brain that is the same."""
        self._record_bytes: dict[Step, int] = {}

    def survey(self, rejected: Collection[WriteId] = frozenset()) -> tuple[list[CommitRef], list[commit_log.BadCommit]]:
        """What the store holds: intact commits in step order, and those that cannot be used, with the reason. Blocks:
        for the begin of a term, before anything else is asked of this object.

        A damaged record is rejected, or its step could never be committed again. So is what the journal calls
        `rejected`: the process may have died between that line and the store. Raises Invalid when the newest commit
        was written by a newer release: going on from an older one would fork the run. Pinned is told."""
        self._check_owner()
        intact: list[CommitRef] = []
        bad: list[commit_log.BadCommit] = []
        for found in commit_log.commits(self._store):
            if isinstance(found, commit_log.BadCommit):
                bad.append(found)
            elif found.write_id in rejected:
                commit_log.reject(self._store, found, "it did not restore in an earlier term")
            else:
                intact.append(found)
        commit_log.latest(self._store)
        self._record_bytes = commit_log.record_sizes(self._store)
        for damaged in bad:
            if damaged.is_damaged and damaged.step is not None:
                commit_log.reject(self._store, damaged, str(damaged.error))
        if self._drains is not None:
            self._drains.found(intact)
        self._tell_pins(is_news=True)
        return intact, bad

    def all_writes(self) -> tuple[WriteId, ...]:
        """Every write of which the store has something: data, an upload, a marker that it was rejected, is pinned or
        being deleted. Blocks for a listing of all objects: for a run that begins in a store that it has not filled."""
        store = self._store
        markers = (info.key for kind in (REJECTED, PINS, DELETING) for info in store.list(kind))
        uploads = (one.key for one in store.list_uploads(STEPS)) if isinstance(store, UploadsParts) else ()
        found = {write_of_marker(key) for key in markers}
        found |= {write_of_key(key) for key in chain((info.key for info in store.list(STEPS)), uploads)}
        return tuple(sorted({write[1] for write in found if write is not None}))

    def record_bytes(self, ref: CommitRef) -> int:
        """Size of the record of a commit that was found or made in this term, 0 of others. Asks nobody."""
        return self._record_bytes.get(ref.step, 0)

    def commit(
        self, *, step: Step, write_id: WriteId, attempt: Attempt, layout: bytes | None, receipts: Sequence[bytes]
    ) -> None:
        """Proves coverage and commits; Committed or SaveFailed is told. Then deletes what failed to go before."""
        self._submit(lambda: self._commit(step, write_id, attempt, layout, receipts), f"commit of {write_id}")
        self._submit(self._delete_owed, "retention")

    def give_up(self, write_id: WriteId, reason: str) -> None:
        """Tells that this write cannot be committed."""
        self._tell(SaveFailed(write_id=write_id, reason=reason))

    def reject(self, ref: CommitRef, reason: str) -> None:
        """Marks a commit that did not restore, so that no later start takes it."""
        self._submit(lambda: self._reject(ref, reason), f"rejection of {ref.write_id}")

    def delete(self, refs: Sequence[CommitRef]) -> None:
        """Deletes these commits but those that are pinned, or cannot be read now; Deleted is told, and Pinned when some
        are pinned."""
        self._submit(lambda: self._delete(refs), "retention")

    def clean(self, in_flight: Callable[[], Collection[WriteId]]) -> None:
        """Removes what writes left that are neither committed nor in flight; `in_flight` is asked on this thread."""
        self._submit(lambda: self._clean(in_flight), "clean-up")

    def close(self) -> None:
        """Waits for what was asked."""
        self._thread.shutdown(wait=True)

    def _commit(
        self, step: Step, write_id: WriteId, attempt: Attempt, layout: bytes | None, receipts: Sequence[bytes]
    ) -> None:
        try:
            if layout is None:
                raise Unavailable(f"save {write_id}: expected the layout with slot 0's receipts, got none")
            self._check_owner()
            self._reject_owed()
            record = commit(
                self._store,
                Candidate(
                    run=self._run_name,
                    step=step,
                    write_id=write_id,
                    attempt=attempt,
                    committed_us=self._clock.now_us(),
                ),
                Layout.decode(layout),
                [Receipt.decode(receipt) for receipt in receipts],
                previous=self._newest(),
                threads=self._threads,
            )
        except BehemothError as error:
            self._unsure.add(write_id)
            # With its hint: what refuses a save often is a matter of what the program declares.
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
            self._tell(SaveFailed(write_id=write_id, reason=f"commit: {reason}"))
            return
        self._previous = record
        self._record_bytes[step] = len(record.encode())
        if self._drains is not None:
            self._drains.committed(record.ref)
        self._tell(Committed(commit=record.ref))
        self._tell_pins(is_news=False)

    def _newest(self) -> CommitRecord | None:
        """The newest intact commit, which the next one is held against; read where the last one here was rejected."""
        if self._previous is None:
            ref = commit_log.latest(self._store)
            self._previous = None if ref is None else commit_log.read_record(self._store, ref)
        return self._previous

    def _check_owner(self) -> None:
        """The directory may have been removed and be another run's by now: nothing of theirs is touched."""
        if self._run_uid is not None:
            require_own(self._store, self._run_uid, url=self._url)

    def _clean(self, in_flight: Callable[[], Collection[WriteId]]) -> None:
        """Also where the object that says whose the store is has gone: saves that fail must not fill the disk."""
        if self._run_uid is not None:
            refuse_other(self._store, self._run_uid, url=self._url)
        execute(self._store, plan_gc(self._store, in_flight=in_flight, unsure=self._unsure.__contains__))

    def _reject(self, ref: CommitRef, reason: str) -> None:
        """What the store does not take now is owed, or the step could not be committed again."""
        self._previous = None
        self._to_reject[ref.step] = ref, reason
        self._reject_owed()

    def _reject_owed(self) -> None:
        """A commit whose record was damaged meanwhile is no longer found by its write id; its step then names it. One
        that cannot be read stays, marked as what it was. What was to be deleted and is owed may be among the last that
        there are then: the brain judges it anew."""
        if not self._to_reject:
            return
        self._check_owner()
        for found in commit_log.commits(self._store):
            if found.step is not None and found.step in self._to_reject:
                ref, reason = self._to_reject[found.step]
                is_unread = isinstance(found, commit_log.BadCommit) and found.is_unread
                commit_log.reject(self._store, ref if is_unread else found, reason)
        self._to_reject.clear()
        if self._to_delete:
            self._tell(Deleted(write_ids=(), kept=tuple(owed.write_id for owed in self._to_delete)))
            self._to_delete = []

    def _delete(self, refs: Sequence[CommitRef]) -> None:
        """What the store does not take now is owed: the brain asks once."""
        self._to_delete += refs
        self._delete_owed()

    def _delete_owed(self) -> None:
        self._reject_owed()  # or what did not restore would count among the last two
        if not self._to_delete:
            return
        self._check_owner()
        held = self._held()
        refs = self._to_delete
        drop = [ref for ref in refs if ref.write_id not in held]
        plan = plan_gc(self._store, drop=drop)
        spared = execute(self._store, plan)
        spared |= {(ref.step, ref.write_id) for ref in refs if ref.write_id in held}
        self._to_delete = []
        gone = tuple(ref.write_id for ref in refs if (ref.step, ref.write_id) not in spared)
        self._tell(Deleted(write_ids=gone, kept=tuple(sorted(write_id for _, write_id in plan.unread))))
        if spared - plan.unread:
            self._tell_pins(is_news=True)

    def _held(self) -> frozenset[WriteId]:
        return frozenset() if self._drains is None else self._drains.held()

    def _tell_pins(self, *, is_news: bool) -> None:
        """What is pinned, when that has changed or the brain is known not to know. Pins that cannot be read are told
        nobody: deletions ask the store again, and delete nothing then."""
        try:
            write_ids = frozenset(write_id for _, write_id in pinned_writes(self._store)) | self._held()
        except BehemothError as error:
            _log.error("pins cannot be read, so retention deletes nothing: %s; %s", error.message, error.hint)
            return
        if is_news or write_ids != self._pinned:
            self._pinned = write_ids
            self._tell(Pinned(write_ids=tuple(sorted(write_ids))))

    def _submit(self, work: Callable[[], object], what: str) -> None:
        def done(future: Future[object]) -> None:
            error = future.exception()
            if error is not None:
                _log.error("%s failed: %s", what, error)

        self._thread.submit(work).add_done_callback(done)


def unsure_writes(observation: Observation | None) -> frozenset[WriteId]:
    """Writes whose commit may have been sent by a leader that has not heard of it, or is dead."""
    if observation is None:
        return frozenset()
    save = observation.save
    return frozenset(observation.aborted) | (frozenset() if save is None else {save.write_id})


def remove_rubbish(store: ObjectStore, unsure: Collection[WriteId]) -> None:
    """Removes what writes left without a commit. Blocks; only while nobody writes. Where pins cannot be read it removes
    nothing: training does not wait for that."""
    try:
        execute(store, plan_gc(store, in_flight=(), unsure=unsure.__contains__))
    except Corrupt as error:
        _log.error("clean-up left out: %s; %s", error.message, error.hint)
