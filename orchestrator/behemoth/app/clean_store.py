"""What `ckpt gc` would delete from a store, and why it keeps the rest: retention, pins and rubbish put together.

Plans only; `checkpoint.gc.execute` deletes. Neighbours: `policy.retention`, which judges, and `store_lock`, which
keeps runs out meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from behemoth.app.checkpoint_desk import unsure_writes
from behemoth.app.history import read_history
from behemoth.app.run_directory import RunDirectory
from behemoth.app.start_run import store_root
from behemoth.base.ids import WriteId
from behemoth.checkpoint.commit_log import BadCommit
from behemoth.checkpoint.gc import GcPlan, plan_gc
from behemoth.checkpoint.paths import write_of_key
from behemoth.checkpoint.signposts import Write
from behemoth.policy.retention import Dated, Reason, Retention, verdicts
from behemoth.ports import ObjectStore
from behemoth.spec.decode import decode_run
from behemoth.state.effect import CommitRef
from behemoth.storage.open import is_nested


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One checkpoint, and why it stays: it goes when there is no reason. `size_bytes` are those of its arrays."""

    commit: CommitRef
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanPlan:
    """`judged` are the intact checkpoints, oldest first; `unusable` are records that cannot be read: they, and the data
    of their steps, stay. `num_unfinished` counts the writes without a commit whose objects or unfinished uploads go."""

    retention: Retention
    judged: tuple[Judged, ...]
    unusable: tuple[BadCommit, ...]
    num_unfinished: int
    gc: GcPlan


def unsure_in(url: str, directory: RunDirectory | None) -> Callable[[WriteId], bool]:
    """Whether the commit of a write in the store at `url` may have been sent by somebody who is dead; `directory` is
    that of the run that owns the store, and is not alive. Raises Corrupt for a damaged journal.

    In the run's own store its journal knows. In any other nobody keeps a book of imports, of saves of DCP, or of copies
    to a second store that were cut off: there it may be true of every write."""
    if directory is None or not _is_first_store(url, directory):
        return lambda _write_id: True
    journal = directory.journal.read_bytes() if directory.journal.exists() else b""
    return unsure_writes(read_history(journal).observation).__contains__


def plan_clean(
    store: ObjectStore,
    retention: Retention,
    *,
    takes_rubbish: bool,
    unsure: Callable[[WriteId], bool] = lambda _write_id: False,
) -> CleanPlan:
    """Reads only. `takes_rubbish`, what writes left that were never committed, is for when nobody can write; of them
    those that are `unsure` may still get their commits (`unsure_in`). Raises Corrupt as `pinned_writes` does."""

    judged: list[Judged] = []
    unusable: list[BadCommit] = []

    def drop(found: Sequence[CommitRef | BadCommit], pinned: Collection[Write]) -> list[CommitRef]:
        judged.extend(_judged(found, pinned, retention))
        unusable.extend(one for one in found if isinstance(one, BadCommit))
        return [one.commit for one in judged if not one.reasons]

    plan = plan_gc(store, drop=drop, in_flight=() if takes_rubbish else None, unsure=unsure)
    keys = [*(info.key for info in plan.objects), *(upload.key for upload in plan.uploads)]
    dropped = {(one.commit.step, one.commit.write_id) for one in judged if not one.reasons}
    return CleanPlan(
        retention=retention,
        judged=tuple(judged),
        unusable=tuple(unusable),
        num_unfinished=len({write_of_key(key) for key in keys} - dropped),
        gc=plan,
    )


def _judged(
    found: Sequence[CommitRef | BadCommit], pinned: Collection[Write], retention: Retention
) -> Iterator[Judged]:
    intact = [one for one in found if isinstance(one, CommitRef)]
    dated = [Dated(step=ref.step, committed_us=ref.committed_us) for ref in intact]
    steps = [ref.step for ref in intact if (ref.step, ref.write_id) in pinned]
    reasons = {verdict.step: verdict.reasons for verdict in verdicts(dated, retention, pinned=steps)}
    return (Judged(commit=ref, reasons=reasons[ref.step]) for ref in intact)


def _is_first_store(url: str, directory: RunDirectory) -> bool:
    """The run file, and `ckpt drain`, take no two stores of which one lies within the other."""
    identity = directory.identity()
    if identity is None:
        return False
    first = identity.store
    if first is None:
        run = decode_run(directory.read_document(), source=str(directory.document))
        first = store_root(run, directory, identity)
    return is_nested(first, url)
