"""Pins: an operator's order to keep a checkpoint whatever retention says. Objects of the store, so that every leader
and every command sees the same ones.

A pin and the deletion of what it pins may meet. So both first write down what they mean to do, then look for the other:
`gc` marks a commit in `deleting/` before it reads the pins for the last time, `pin` creates its object before it looks
for that mark. In a store whose listings show what was created before them (local directories, S3) at least one of the
two sees the other: gc spares what is pinned, and `pin` reports no success while there is a mark. So a pin that was
reported as set is never one on nothing. One that was not, because of a mark or a crash, may be left behind: it keeps
what is still there, and `unpin` takes it away.
Neighbours: `gc`, `marker`.
"""

from __future__ import annotations

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import BadCommit, commits, read_record, rejected_writes
from behemoth.checkpoint.marker import GOING, Marker, is_put_up
from behemoth.checkpoint.paths import DELETING, PINS, marker_key, step_prefix, write_of_marker
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef


def pinned_writes(store: ObjectStore) -> frozenset[tuple[Step, WriteId]]:
    """Step and write of every pin, by the names of the objects: one whose contents are damaged pins all the same.

    Raises Corrupt for an object whose name is not that of a pin: nobody can tell what it was to keep.
    """
    found = set()
    for info in store.list(PINS):
        write = write_of_marker(info.key)
        if write is None:
            raise Corrupt(
                f"{info.key}: expected {PINS}/<nine digits>-<write>.json, got a name that pins no checkpoint",
                hint="remove it, or move it out of the store; nothing is deleted as long as it is there",
                code="pin-name",
            )
        found.add(write)
    return frozenset(found)


def lost_pins(store: ObjectStore) -> frozenset[tuple[Step, WriteId]]:
    """Pins on what is not there: no commit of that write, no record of its step that cannot be read, and of one that
    was rejected no data. Blocks for a small read per commit where something is pinned."""
    pinned = _named(store)
    if not pinned:
        return frozenset()
    found = commits(store)
    bad = {one.step for one in found if isinstance(one, BadCommit)}
    lost = {write for write in pinned if write[0] not in bad}
    lost -= {(one.step, one.write_id) for one in found if not isinstance(one, BadCommit)}
    rejected = lost & rejected_writes(store)
    lost -= {write for write in rejected if any(True for _ in store.list(step_prefix(*write)))}
    return _named(store) & lost if lost else frozenset()  # `unpin` and a deletion may have come between


def pin(store: ObjectStore, ref: CommitRef, *, reason: str, at_us: int) -> bool:
    """Keep this commit until it is unpinned, durably on return. Returns whether the pin is new.

    Raises NotFound when the commit is not there, and Conflict while it is marked as being deleted: the pin is written
    then, and holds unless that deletion had read the pins before. Killed anywhere it leaves a pin or none; the pin may
    be on a commit that is just going. Idempotent.
    """
    read_record(store, ref)
    key = marker_key(PINS, ref.step, ref.write_id)
    is_new = True
    try:
        store.create(key, Marker.of(ref.step, ref.write_id, reason=reason, at_us=at_us).encode())
    except Conflict:
        is_new = False
    write = ref.step, ref.write_id
    is_going = is_put_up(store, DELETING, write)  # before the commit, which goes before its mark
    try:
        read_record(store, ref)
    except NotFound as error:
        if is_new:  # one that stood already keeps the data of a commit that was rejected
            store.delete([key])
        raise NotFound(
            f"checkpoint of step {ref.step}: expected it to stay while it was pinned, got it deleted meanwhile",
            hint="retention was faster; pin one that is kept",
            code="commit-gone",
        ) from error
    if is_going:
        raise Conflict(
            f"checkpoint of step {ref.step}: expected one that is not being deleted, got one that is marked as such",
            hint="pin it again in a moment; a mark of a deletion that was cut off "
            f"({marker_key(DELETING, *write)}) goes with the next clean-up, which spares what is pinned",
            code=GOING,
        )
    return is_new


def unpin(store: ObjectStore, step: Step, write_id: WriteId) -> None:
    """Leave a write to retention again, durably on return. Idempotent."""
    store.delete([marker_key(PINS, step, write_id)])


def _named(store: ObjectStore) -> frozenset[tuple[Step, WriteId]]:
    writes = (write_of_marker(info.key) for info in store.list(PINS))
    return frozenset(write for write in writes if write is not None)
