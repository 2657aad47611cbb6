"""Keeps checkpoints and the folders by which a program knows them in step.

After a commit: folders that are missing are created, those without a checkpoint are removed, and a checkpoint whose
folder the program has removed is deleted, unless it is pinned or one of the newest two. Neighbours: `publish` (the
commit before that), `checkpoint.signposts` (what a folder holds), `checkpoint.gc` (which deletes).
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
    """Blocks for a small listing per folder, and for the deletions. When it is killed, the next save does the rest.
    Raises the store's errors where a folder could not be created; deletions that fail are logged."""
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
    """Checkpoints whose folders the program has removed. Empty when all folders are gone: no program deletes every
    checkpoint that it could resume from, so that is a store that was copied without its folders."""
    gone = [one for one in were_set if not stands(store, one)]
    newest = sorted(committed)[-MIN_KEPT:]
    return [one for one in gone if one.write not in newest] if len(gone) < len(were_set) else []
