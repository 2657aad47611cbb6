"""Keeps checkpoints and the folders by which a program knows them in step.

After a commit: what is due is put up, what has lost its checkpoint is taken down, and a checkpoint whose folder the
program has removed goes, unless it is pinned or one of the newest two. Neighbours: `publish` (the commit before that),
`checkpoint.signposts` (what a folder holds), `checkpoint.gc` (which deletes).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from behemoth.base.errors import BehemothError
from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.signposts import Signpost, Write, forget, put_up, signposts, stands, take_down
from behemoth.policy.retention import MIN_KEPT
from behemoth.ports import ObjectStore

_log = logging.getLogger(__name__)


def settle(store: ObjectStore) -> None:
    """Blocks for a small listing per folder that stood, and for the deletions. Killed anywhere it leaves the rest to
    the next save. Raises the store's errors where a folder could not be put up; what could not be deleted is logged."""
    found = signposts(store)
    if not found:
        return
    listed = commits(store)
    committed = {(one.step, one.write_id) for one in listed if not isinstance(one, BadCommit)}
    for one in found:
        if one.write in committed and not one.was_set:
            put_up(store, one)
    unreadable = {one.step for one in listed if isinstance(one, BadCommit)}
    lost = {one.write for one in found if one.was_set and one.step not in unreadable} - committed
    try:
        # A save that failed before its commit has no file of its own, and keeps nobody's.
        take_down(store, [one for one in found if one.was_set or one.write in committed], lost)
        forget(store, found, lost)
        given_up = _given_up(store, [one for one in found if one.was_set and one.write in committed], committed)
        if given_up:
            execute(store, plan_gc(store, drop=given_up))
    except BehemothError as error:
        _log.warning("checkpoints whose folders were removed stay until the next save: %s", error)


def _given_up(store: ObjectStore, were_set: Sequence[Signpost], committed: Collection[Write]) -> list[Signpost]:
    """None where no folder is left of all that stood: no program gives up what it would go on from. That is a store
    that was copied without them."""
    gone = [one for one in were_set if not stands(store, one)]
    newest = sorted(committed)[-MIN_KEPT:]
    return [one for one in gone if one.write not in newest] if len(gone) < len(were_set) else []
