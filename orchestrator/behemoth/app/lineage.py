"""Checks that a store still holds the checkpoints that its run's journal knows, so that no run silently starts over.

A file system that is not mounted, or a path that means another folder today, looks like a store with nothing in it.
The journal is never ahead of the store: a commit is durable before it is told, so what is told and not given up lies
there, whole or damaged. It may be behind: the store can have commits, deletions (of older ones than the newest, which
retention keeps) and rejections that no line tells. So one trace of one known commit proves that this is the store.
Reads only. Neighbour: `checkpoint_desk`, which surveys what is there.
"""

from __future__ import annotations

from behemoth.base.errors import NotFound
from behemoth.checkpoint.commit_log import commits, has_trace
from behemoth.checkpoint.paths import OWNER_KEY
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.state.observation import Observation


def require_lineage(store: ObjectStore, former: Observation | None, *, url: str) -> None:
    """Raises NotFound when the journal, folded to `former`, knows commits and the store has none of them."""
    known = _known(former) if former is not None else []
    if not known or has_trace(store, known):
        return
    newest = known[-1]
    others = [one for one in commits(store) if isinstance(one, CommitRef)]
    to_go_on = (
        f"to go on from its checkpoint of step {others[-1].step} (a backup's?), remove {OWNER_KEY} from it, and name "
        "it in the file of a run in another directory; "
        if others
        else ""
    )
    raise NotFound(
        f"checkpoint store {url}: expected the checkpoint of step {newest.step} (write {newest.write_id}), got none of "
        f"the {len(known)} that the journal of this run knows",
        hint="mount the store, put it back or link it there, and run the same command again; "
        f"{to_go_on}to train from the beginning, name another directory with --dir",
        code="checkpoints-gone",
    )


def _known(former: Observation) -> list[CommitRef]:
    """The commits that the store must have, in step order: without those rejected or deleted, which it may have or
    not."""
    given_up = former.rejected | former.deleting | {commit.write_id for commit in former.expired}
    return [commit for commit in former.commits if commit.write_id not in given_up]
