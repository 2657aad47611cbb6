"""The plan of a copy of a checkpoint to another store: its objects, which of them the target holds, and whether the
target may have the commit at all. Reads metadata and listings only.

Neighbour: `draining`, which copies, and asks the same questions first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from behemoth.base.errors import Conflict
from behemoth.checkpoint.chunk_check import Shard, shards_of
from behemoth.checkpoint.commit_index import CommitIndex, MetadataObject
from behemoth.checkpoint.commit_log import COMMIT_TAKEN, BadCommit, at_step, read_stored, rejected_writes
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.marker import GOING, is_put_up
from behemoth.checkpoint.opened import read_index
from behemoth.checkpoint.paths import DELETING, INDEX, marker_key, rejected_key
from behemoth.checkpoint.replacing import require_unpinned
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef

REJECTED = "drain-rejected"
"""The code of an error that stays until somebody removes a marker from the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """What `draining.copy_checkpoint` would do. `num_objects` and `num_bytes` count all objects but the commit;
    `found_objects` and `found_bytes` those of them that stand at the target in their full size. Whether these are whole
    tells only reading them back, which the copy does. `is_there`: the target has the commit, and nothing is to do."""

    record: CommitRecord
    num_objects: int
    num_bytes: int
    found_objects: int
    found_bytes: int
    is_there: bool


def plan_copy(source: ObjectStore, target: ObjectStore, ref: CommitRef) -> CopyPlan:
    """Reads the commit and the index, and lists what the target holds. Raises as `copy_checkpoint` does for what keeps
    it from beginning."""
    record, _ = read_stored(source, ref)
    is_there = has_commit(target, record)
    index = read_index(source, record)
    sizes = object_sizes(shards_of(record, index), small_objects(record, index))
    listed = [] if is_there else list(target.list(record.prefix))
    found = {info.key: info.size_bytes for info in listed if sizes.get(info.key) == info.size_bytes}
    return CopyPlan(
        record=record,
        num_objects=len(sizes),
        num_bytes=sum(sizes.values()),
        found_objects=len(found),
        found_bytes=sum(found.values()),
        is_there=is_there,
    )


def has_commit(target: ObjectStore, record: CommitRecord, *, replaces: bool = False) -> bool:
    """Whether the target has this commit. Raises Conflict where it could not be published, before anything is copied
    for it; where it `replaces` another write's of the step, that is one which is pinned."""
    rejected = rejected_writes(target)
    if (record.step, record.write_id) in rejected:
        raise Conflict(
            f"checkpoint of step {record.step}: expected a target that takes write {record.write_id}, got one that "
            "has rejected it",
            hint=f"take another checkpoint; {rejected_key(record.step, record.write_id)} there tells why; remove it "
            "only if that was a copy which was given up",
            code=REJECTED,
        )
    standing = at_step(target, record.step)
    if standing is None:
        return False
    if isinstance(standing, BadCommit):
        raise Conflict(
            f"checkpoint of step {record.step}: expected no commit at the target, got a record that cannot be read",
            hint=f"{'make it readable' if standing.is_unread else f'remove {standing.key} there'}; "
            f"{standing.error.message}",
            code=COMMIT_TAKEN,
        )
    if standing.write_id == record.write_id:
        return True
    if (standing.step, standing.write_id) in rejected:
        return False
    if replaces:
        require_unpinned(target, standing.ref)
        return False
    raise Conflict(
        f"checkpoint of step {record.step}: expected none at the target, or write {record.write_id}, got write "
        f"{standing.write_id}",
        hint="two histories of a run do not mix: name another target",
        code=COMMIT_TAKEN,
    )


def refuse_going(target: ObjectStore, record: CommitRecord) -> None:
    """Raises Conflict while the target deletes this checkpoint: its commit has gone, and its objects, which a copy
    would keep for whole, go next. To be asked once the commit was not found there: it goes after its mark."""
    write = record.step, record.write_id
    if is_put_up(target, DELETING, write):
        raise Conflict(
            f"checkpoint of step {record.step}: expected a target that is not deleting it, got one with "
            f"{marker_key(DELETING, *write)}",
            hint="copy it again in a moment; what a deletion that was cut off left goes with the next `behemoth ckpt "
            "gc --execute` there",
            code=GOING,
        )


def small_objects(record: CommitRecord, index: CommitIndex) -> list[MetadataObject]:
    """Every zarr.json, and the index, by their keys in the store."""
    own = MetadataObject(key=INDEX, size_bytes=record.index_bytes, crc=record.index_crc)
    return [replace(one, key=f"{record.prefix}/{one.key}") for one in (*index.metadata, own)]


def object_sizes(shards: Sequence[Shard], small: Sequence[MetadataObject]) -> dict[str, int]:
    """Size in bytes of every object of the write, by key."""
    return {shard.key: shard.grid.file_bytes for shard in shards} | {one.key: one.size_bytes for one in small}
