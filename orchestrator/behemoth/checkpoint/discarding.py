"""Removes what one write left, for who gives up a write of its own, or has put another in its place.

Nobody is asked which writes are in flight or kept: that is the caller's knowledge. So nothing here looks at other
writes. Neighbours: `gc`, which cleans up behind all of them, and tells why a commit is rejected before its data go.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from behemoth.base.errors import BehemothError
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import BadCommit, commit_of
from behemoth.checkpoint.gc import BATCH_KEYS
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.paths import INDEX, REJECTED, step_prefix
from behemoth.checkpoint.signposts import forget, signposts
from behemoth.ports import ObjectStore, UploadsParts


def discard_write(store: ObjectStore, step: Step, write_id: WriteId) -> None:
    """Remove what a write left that will never be committed: objects, unfinished uploads, the records of its signpost.
    One that was committed stays, the answer lost, and one whose step has a record that cannot be read. In a bucket its
    commit may be on its way, if it came as far as an index: it is rejected first. Idempotent. Raises the stores'
    errors."""
    standing = commit_of(store, step)
    if isinstance(standing, BadCommit) or (standing is not None and standing.write_id == write_id):
        return
    prefix = step_prefix(step, write_id)
    abort_uploads(store, prefix)
    keys = [info.key for info in store.list(prefix)]
    if isinstance(store, UploadsParts) and f"{prefix}/{INDEX}" in keys:
        put_up(store, REJECTED, (step, write_id), reason="it failed before its commit was known to be there")
    _delete(store, keys)
    forget(store, signposts(store), {(step, write_id)})


def abort_uploads(store: ObjectStore, prefix: str) -> None:
    """End all uploads of objects below a prefix, whoever began them. What cannot be ended now is found by `gc`."""
    if isinstance(store, UploadsParts):
        with suppress(BehemothError):
            for upload in list(store.list_uploads(prefix)):
                with suppress(BehemothError):
                    store.abort_upload(upload.key, upload.upload_id)


def delete_below(store: ObjectStore, prefix: str) -> None:
    """Remove all objects below a prefix, durably on return."""
    _delete(store, [info.key for info in store.list(prefix)])


def _delete(store: ObjectStore, keys: Sequence[str]) -> None:
    for begin in range(0, len(keys), BATCH_KEYS):
        store.delete(keys[begin : begin + BATCH_KEYS])
