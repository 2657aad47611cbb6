"""Checks the small objects of a store beside its checkpoints: owner, rejections, pins, deletions, signposts; and that
what is pinned exists.

Each has a CRC of its own, and what else lies in their folders is named. Like `verify`, its neighbour, it reports and
never raises what the store says of an object, repairs nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from behemoth.base.errors import BehemothError
from behemoth.checkpoint.commit_log import is_away
from behemoth.checkpoint.marker import read_marker
from behemoth.checkpoint.owner import read_owner
from behemoth.checkpoint.paths import (
    DELETING,
    OWNER,
    OWNER_KEY,
    PINS,
    REJECTED,
    SIGNPOSTS,
    marker_key,
    signpost_of_key,
    write_of_marker,
)
from behemoth.checkpoint.pins import lost_pins
from behemoth.checkpoint.problem import Kind, Problem
from behemoth.checkpoint.small_objects import of_each
from behemoth.ports import ObjectInfo, ObjectStore


def verify_store(store: ObjectStore) -> tuple[Problem, ...]:
    """Blocks for a small read an object, and a commit where something is pinned; a store without any is fine."""
    return (*_check_owner(store), *_check_markers(store), *_check_pinned(store), *_check_signposts(store))


def _check_owner(store: ObjectStore) -> Iterator[Problem]:
    for info in store.list(OWNER):
        if info.key != OWNER_KEY:
            yield _problem("extra", info, "expected no such object beside the store's owner, got one")
    try:
        read_owner(store)
    except BehemothError as error:
        if is_away(error):
            raise
        yield _problem("owner", ObjectInfo(key=OWNER_KEY, size_bytes=0), error.message)


def _check_markers(store: ObjectStore) -> Iterator[Problem]:
    listed = (info for folder in (REJECTED, PINS, DELETING) for info in store.list(folder))
    return (problem for problem in of_each(partial(_of_marker, store), listed) if problem is not None)


def _of_marker(store: ObjectStore, info: ObjectInfo) -> Problem | None:
    if write_of_marker(info.key) is None:
        return _problem("extra", info, "expected a name with the step and the write of a checkpoint, got another")
    try:
        read_marker(store, info)
    except BehemothError as error:
        if is_away(error):
            raise
        return _problem("marker", info, error.message)
    return None


def _check_pinned(store: ObjectStore) -> Iterator[Problem]:
    for step, write_id in sorted(lost_pins(store)):
        info = ObjectInfo(key=marker_key(PINS, step, write_id), size_bytes=0)
        what = f"expected the checkpoint of step {step}, write {write_id}, which is pinned, got no commit of it"
        yield _problem("missing", info, f"{what}: put it back from a copy, or `behemoth ckpt unpin` it")


def _check_signposts(store: ObjectStore) -> Iterator[Problem]:
    for info in store.list(SIGNPOSTS):
        if signpost_of_key(info.key) is None or info.size_bytes:
            yield _problem("extra", info, "expected an empty object named by state, write and folder, got another")


def _problem(kind: Kind, info: ObjectInfo, message: str) -> Problem:
    return Problem(kind=kind, object_key=info.key, offset_bytes=0, length_bytes=info.size_bytes, message=message)
