"""Puts a commit in the place of another write's of the same step: one request, so that the step has one at any time.

What goes may be pinned at that moment. So it goes as `gc` deletes: it is marked in `deleting/`, the pins are read once
more, and only then the records are exchanged; `pins` tells why that is enough. Killed before the exchange the old one
stands, behind it the new one. The mark and the data of the old one are left to `gc`, which takes the data first.
Neighbours: `commit_log.publish`, for a step that is free, and `gc`.
"""

from __future__ import annotations

from behemoth.base.errors import Conflict, Corrupt
from behemoth.checkpoint.commit_log import read_stored
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.paths import DELETING, commit_key
from behemoth.checkpoint.pins import pinned_writes
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef

PINNED = "commit-pinned"
"""Code of the error for a commit that somebody wants to keep."""


def replace_commit(store: ObjectStore, old: CommitRef, record: CommitRecord, data: bytes) -> None:
    """Put `record`, whose bytes are `data`, where the commit `old` of the same step stands; durable on return. All that
    it names must be durable. Idempotent, and may be killed anywhere.

    Raises Conflict `PINNED`, and as `require_unpinned` does, Conflict `changed` and NotFound when `old` does not stand
    there, and the store's errors: it stands then, unless the answer of the store was lost.
    """
    standing = read_stored(store, old)[1]
    mark = put_up(store, DELETING, (old.step, old.write_id), reason=f"write {record.write_id} takes its place")
    try:
        require_unpinned(store, old)
    except Conflict:
        store.delete([mark])
        raise
    store.replace(commit_key(record.step), old=standing, new=data)


def require_unpinned(store: ObjectStore, ref: CommitRef) -> None:
    """Raises Conflict `PINNED` for a commit that is pinned, and Conflict where that cannot be told."""
    try:
        is_pinned = (ref.step, ref.write_id) in pinned_writes(store)
    except Corrupt as error:  # of the pins, and no commit is damaged
        raise Conflict(error.message, hint=error.hint, code=error.code) from error
    if is_pinned:
        raise Conflict(
            f"checkpoint of step {ref.step}: expected one that may be replaced, got write {ref.write_id}, which is "
            "pinned",
            hint="`behemoth ckpt unpin` it if another may take its place",
            code=PINNED,
        )
