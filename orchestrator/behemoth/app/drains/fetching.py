"""Brings the newest checkpoint of the second store back into a first one that has lost it.

Before a run goes on, and before its journal is held against its store: what was fetched is there as if it had never
been gone. Neighbours: `checkpoint.draining`, which copies, and `app.lineage`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from behemoth.base.errors import BehemothError, Corrupt
from behemoth.base.ids import WriteId
from behemoth.checkpoint.commit_log import BadCommit, at_step, commits, latest, reject, rejected_writes
from behemoth.checkpoint.draining import copy_checkpoint
from behemoth.ports import ObjectStore, SavesTo
from behemoth.state.effect import CommitRef

Progress = Callable[[CommitRef, int, int], None]
"""Told the checkpoint, bytes done and bytes to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came back, if anything had to; `damaged` are newer ones that are not whole in the second store."""

    commit: CommitRef | None
    damaged: tuple[Corrupt, ...] = ()


def fetch_newest(
    below: ObjectStore,
    store: SavesTo,
    *,
    url: str,
    rejected: Collection[WriteId],
    threads: int,
    progress: Progress,
) -> Fetched:
    """Copy the newest checkpoint of `below`, which lies at `url`, into `store`, if that has none as new. Those in
    `rejected`, or rejected in the store, did not restore and stay where they are. Blocks; idempotent.

    Raises Corrupt when nothing usable is in either, though there are checkpoints below, and the stores' errors, with
    what was to be fetched.
    """
    above = latest(store)
    gone = rejected_writes(store)
    usable = [
        one
        for one in commits(below)
        if isinstance(one, CommitRef)
        and one.write_id not in rejected
        and (one.step, one.write_id) not in gone
        and (above is None or one.step > above.step)
    ]
    damaged: list[Corrupt] = []
    for commit in reversed(usable):
        try:
            _fetch(below, store, commit, threads=threads, progress=progress)
        except Corrupt as error:
            damaged.append(error)
        except BehemothError as error:
            raise error.within(f"checkpoint of step {commit.step}: expected to fetch it from {url}, got") from error
        else:
            return Fetched(commit=commit, damaged=tuple(damaged))
    if damaged and above is None:
        raise damaged[0]
    return Fetched(commit=None, damaged=tuple(damaged))


def _fetch(below: ObjectStore, store: SavesTo, commit: CommitRef, *, threads: int, progress: Progress) -> None:
    """A damaged record that stands in the way is taken back first, as every start does."""
    standing = at_step(store, commit.step)
    if isinstance(standing, BadCommit) and standing.is_damaged:
        reject(store, standing, standing.error.message)
    copy_checkpoint(below, store, commit, threads=threads, progress=lambda done, total: progress(commit, done, total))
