"""Removes checkpoints that retention gave up, and what writes left that never became one. Plans first, then deletes.

A commit must never name missing data, whatever is killed when. So the commit record goes first, and durably; only then
the objects. A crash between the two leaves objects without a commit: garbage like that of a failed save, found by name
the next time. Before a record goes it is marked in `deleting/`, and the pins are read once more: `pins` says why. What
the plan does not recognise it leaves alone.

In a bucket a request may be carried out after whoever sent it has given up, or is dead. So a write of which that may be
true of the commit is rejected before its data go: one that still arrives then counts for nobody, and its step is free.
Neighbours: `policy.retention`, `pins` and `commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, runtime_checkable

from behemoth.base.errors import Invalid, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import BadCommit, at_step, listed_commits, rejected_writes, remove
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.paths import (
    DELETING,
    INDEX,
    REJECTED,
    STEPS,
    marker_key,
    step_prefix,
    write_of_key,
    write_of_marker,
)
from behemoth.checkpoint.pins import pinned_writes
from behemoth.checkpoint.signposts import Signpost, Write, forget, signposts, take_down
from behemoth.checkpoint.small_objects import of_each
from behemoth.policy.retention import MIN_KEPT
from behemoth.ports import ObjectInfo, ObjectStore, UnfinishedUpload, UploadsParts
from behemoth.state.effect import CommitRef

BATCH_KEYS = 1000
"""Keys per delete call: the most that one S3 DeleteObjects request takes."""
ORPHAN_AGE_S = 24 * 3600.0
"""An upload begun so long ago is nobody's any more: a save ends within minutes, an import within hours."""
LATE_S = 3600.0
"""How long after its index a write may get its commit from somebody who is dead: AWS takes a request that was signed a
quarter of an hour ago, and a copy signs it some minutes after the last object, at most."""

NO_SPACE = "no-space"
"""Code of a store's error for a disk, or a quota, that is full."""

InFlight = Collection[WriteId] | Callable[[], Collection[WriteId]]


class CommitName(Protocol):
    """What names a commit; every kind of reference to one has it."""

    @property
    def step(self) -> Step: ...

    @property
    def write_id(self) -> WriteId: ...


Found = CommitRef | BadCommit
Drop = Collection[CommitName] | Callable[[Sequence[Found], Collection[Write]], Collection[CommitName]]
"""The commits to delete, or a function that says which of those that were found, of which some writes are pinned; it is
called once, with the commits in order of their steps."""


@runtime_checkable
class KeepsLeftovers(Protocol):
    """A store whose own cut-off calls leave something that is no object: temporary files, unfinished uploads.

    Not part of ObjectStore, because nobody but gc asks, and a store in memory has none.
    """

    def leftovers(self) -> Iterator[str]:
        """Names of what cut-off calls left, folders with a `/` at the end; those of calls under way may be among
        them."""
        ...

    def delete_leftovers(self, names: Sequence[str]) -> None:
        """Remove them; missing ones are fine, and a call under way survives it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What would be deleted, in this order: signposts, commits, unfinished uploads, objects, leftovers, marks of
    deletions that were cut off. Before all that `rejects` are rejected: writes whose commit may still arrive. `spared`
    was to be dropped and is pinned, or has a record that cannot be read. `signposts` are all that the store has: those
    of the commits go, and those of `unposted`, writes that have none."""

    rejects: tuple[Write, ...]
    commits: tuple[Write, ...]
    records: tuple[ObjectInfo, ...]
    """The records of `commits`, as they were listed."""
    uploads: tuple[UnfinishedUpload, ...]
    objects: tuple[ObjectInfo, ...]
    leftovers: tuple[str, ...]
    stale_marks: tuple[str, ...]
    spared: tuple[Write, ...]
    unread: frozenset[Write]
    """Of `spared`, those whose record cannot be read."""
    signposts: tuple[Signpost, ...]
    unposted: frozenset[Write]

    def objects_without(self, spared: Collection[Write]) -> Iterator[ObjectInfo]:
        """What goes when these writes were pinned after the plan was made."""
        return (info for info in self.objects if write_of_key(info.key) not in spared)


def plan_gc(
    store: ObjectStore,
    *,
    drop: Drop = (),
    in_flight: InFlight | None = None,
    unsure: Callable[[WriteId], bool] = lambda _write_id: False,
) -> GcPlan:
    """What to delete: the commits in `drop` with their data, and, when `in_flight` is given, all writes that are
    neither committed nor in flight, and the store's leftovers. Uploads older than ORPHAN_AGE_S go in any case, unless
    they are in flight. Reads only; O(objects listed).

    `in_flight` must name every write whose first byte may have been written by now. Passed as a function it is asked
    after the listing and before the commits are read, so that a write may begin or commit meanwhile; a collection is
    safe only while no write begins. `unsure`: whether the commit of a write may have been sent without an answer; not
    that of one whose commit was here and is gone, since what is rejected here is rejected where it was drained to. So
    of such a write, which may be a copy that was cut off, a bucket keeps what is there until LATE_S after its index.

    What is pinned is kept, its data even where its commit was taken back. Data of a step whose commit record cannot be
    read is kept, also where it is to be dropped: a newer release may have written it, or it is whole and becomes
    readable again. Raises Invalid for an attempt to drop one of the newest two intact commits, and Corrupt as
    `pinned_writes` does.
    """
    listed = list(store.list(STEPS)) if in_flight is not None else []
    posted = signposts(store)
    uploads = list(store.list_uploads(STEPS)) if isinstance(store, UploadsParts) else []
    youngest_s = ORPHAN_AGE_S if in_flight is None else 0.0
    flying = set(in_flight() if callable(in_flight) else in_flight or ())
    found = listed_commits(store)
    intact = {(one.step, one.write_id): info for info, one in found if not isinstance(one, BadCommit)}
    committed = intact.keys()
    unreadable = {one.step for _, one in found if isinstance(one, BadCommit) and one.step is not None}
    pinned = pinned_writes(store)
    names = drop([one for _, one in found], pinned) if callable(drop) else drop
    asked = {(name.step, name.write_id) for name in names}
    spared = {write for write in asked if write in pinned or write[0] in unreadable}
    dropped = asked - spared
    _refuse_newest(committed, dropped)
    marked = [(info.key, write_of_marker(info.key)) for info in store.list(DELETING)]
    going = {write for _, write in marked} | dropped  # these had their commits
    kept = committed | pinned | _named(listed, lambda write: write[0] in unreadable or write[1] in flying)
    kept |= _awaited(store, listed, lambda write: write in going or unsure(write[1]))
    garbage = list(_of(store, dropped))
    others = {None, *kept, *dropped}
    garbage += [info for info in listed if write_of_key(info.key) not in others]
    unposted = {one.write for one in posted if in_flight is not None and one.write[1] not in flying}
    return GcPlan(
        rejects=_rejects(garbage, going, unsure) if isinstance(store, UploadsParts) else (),
        commits=tuple(sorted(committed & dropped)),
        records=tuple(intact[write] for write in sorted(committed & dropped)),
        uploads=tuple(one for one in uploads if one.age_s >= youngest_s and not _is_flying(one, flying)),
        objects=tuple(garbage),
        leftovers=tuple(_leftovers(store)) if in_flight is not None else (),
        stale_marks=tuple(key for key, write in marked if write is not None and write not in committed & dropped),
        spared=tuple(sorted(spared)),
        unread=frozenset(write for write in spared if write[0] in unreadable),
        signposts=tuple(posted),
        unposted=frozenset(write for write in unposted - kept - dropped if write[0] not in unreadable),
    )


def _rejects(
    garbage: Sequence[ObjectInfo], going: Collection[Write | None], unsure: Callable[[WriteId], bool]
) -> tuple[Write, ...]:
    """The writes whose commit may still arrive: those with an index, since no commit is sent before that."""
    written = _named(garbage, lambda write: write not in going and unsure(write[1]))
    keys = {info.key for info in garbage}
    return tuple(sorted(write for write in written if f"{step_prefix(*write)}/{INDEX}" in keys))


def _awaited(store: ObjectStore, listed: Sequence[ObjectInfo], is_settled: Callable[[Write], bool]) -> set[Write]:
    """Writes whose commit may still arrive and count, of which nobody here can say that they are given up. Files know
    none: what a process asked of the kernel is done or not when it is dead."""
    if not isinstance(store, UploadsParts):
        return set()
    young = {info.key for info in listed if info.age_s < LATE_S and info.key.endswith(f"/{INDEX}")}
    writes = {write for write in map(write_of_key, young) if write is not None and not is_settled(write)}
    found = {write for write in writes if f"{step_prefix(*write)}/{INDEX}" in young}
    return found - rejected_writes(store) if found else found


def _is_flying(upload: UnfinishedUpload, flying: Collection[WriteId]) -> bool:
    """Nothing else keeps an upload: what a commit names is complete, and no object comes of an upload that nobody
    completes."""
    write = write_of_key(upload.key)
    return write is None or write[1] in flying


def _leftovers(store: ObjectStore) -> Iterator[str]:
    """Folders only where writes make them: another empty one (`lost+found`) is somebody's."""
    names = store.leftovers() if isinstance(store, KeepsLeftovers) else ()
    return (name for name in names if not name.endswith("/") or name.startswith(f"{STEPS}/"))


def execute(store: ObjectStore, plan: GcPlan) -> frozenset[Write]:
    """Delete what the plan names, but no commit that was pinned since; what was spared in all. Idempotent; may be
    cut off anywhere and be planned again. Blocks for as long as the store takes. The caller is the run's only leader:
    nobody else commits or deletes meanwhile. Works on a full disk too, where it is needed most."""
    reason = "it was given up before its commit was known to be there"
    unrejected = {*plan.rejects} - _put_up_all(store, REJECTED, plan.rejects, reason=reason)
    _put_up_all(store, DELETING, plan.commits, reason="it is being deleted")
    pinned = pinned_writes(store) if plan.commits else frozenset()
    left = sorted({*plan.commits} - pinned)
    found = of_each(partial(_stands, store), left)
    going = {write for write, stands in zip(left, found, strict=True) if stands}
    unposted = going | plan.unposted
    take_down(store, plan.signposts, unposted)  # first, so that no program finds one without its commit
    if going:
        remove(store, [info for write, info in zip(plan.commits, plan.records, strict=True) if write in going])
    if isinstance(store, UploadsParts):
        for upload in plan.uploads:
            store.abort_upload(upload.key, upload.upload_id)
    spared = pinned.intersection(plan.commits)
    keys = (info.key for info in plan.objects_without(spared | unrejected))
    while batch := list(islice(keys, BATCH_KEYS)):
        store.delete(batch)
    if plan.leftovers and isinstance(store, KeepsLeftovers):
        store.delete_leftovers(plan.leftovers)
    forget(store, plan.signposts, unposted)
    if plan.commits or plan.stale_marks:
        store.delete([*(marker_key(DELETING, *write) for write in plan.commits), *plan.stale_marks])
    return spared.union(plan.spared)


def _put_up_all(store: ObjectStore, folder: str, writes: Sequence[Write], *, reason: str) -> set[Write]:
    """The writes that have their markers: on a full disk, or at the end of a quota, not all of them. Nobody can set a
    pin there either, which the marks of deletions are for, and what goes makes room. A write that is not rejected keeps
    its data until the next time."""
    done: set[Write] = set()
    try:
        for write in writes:
            put_up(store, folder, write, reason=reason)
            done.add(write)
    except Unavailable as error:
        if error.code != NO_SPACE:
            raise
    return done


def _stands(store: ObjectStore, write: Write) -> bool:
    """Whether no other write has its step by now: in a store that no run owns, somebody may have saved that step anew
    since the plan, in the same folder. Its data are rubbish then, and nothing else goes."""
    standing = at_step(store, write[0])
    return not isinstance(standing, CommitRecord) or standing.write_id == write[1]


def _refuse_newest(committed: Collection[Write], dropped: Collection[Write]) -> None:
    newest = sorted(committed)[-MIN_KEPT:]
    for write in newest:
        if write in dropped:
            raise Invalid(
                f"gc: expected commits older than the newest {len(newest)}, got that of step {write[0]}",
                hint=f"the newest {MIN_KEPT} checkpoints are never deleted; one that is damaged is rejected instead",
            )


def _of(store: ObjectStore, writes: Collection[Write]) -> Iterator[ObjectInfo]:
    for step, write_id in sorted(writes):
        yield from store.list(step_prefix(step, write_id))


def _named(listed: Sequence[ObjectInfo], wanted: Callable[[Write], bool]) -> set[Write]:
    writes = {write_of_key(info.key) for info in listed}
    return {write for write in writes if write is not None and wanted(write)}
