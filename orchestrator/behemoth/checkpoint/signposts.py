"""Signposts: small files that programs look for where they told torch to put a checkpoint.

Such a program (torchtitan is one) knows no store. It finds where it left off by folders `step-100` with a file
`.metadata`, and gives a checkpoint up by removing its folder. So a write that was asked for by the name of a folder
leaves a file of that name there, after its commit, and a checkpoint whose file is gone has been given up.

A kill between commit and file must not look like that. So there are records: that the file is due comes before the
commit, that it stood comes after the file. Names alone count, and the records are empty.

| record   | commit | file | means |
|----------|--------|------|-------|
| due      | no     | no   | a save that is under way or failed |
| due      | yes    | -    | killed in between: the file is put up by the next save |
| set      | yes    | yes  | as it should be |
| set      | yes    | no   | the program gave the checkpoint up |

Whoever deletes the commit takes the file away first, so that no program finds one without a checkpoint. Neighbours:
`gc`, which does so, and `behemoth.dcp`, whose saves put them up.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.paths import SIGNPOSTS, SignpostState, signpost_file, signpost_key, signpost_of_key
from behemoth.checkpoint.small_objects import find_listed, read_listed
from behemoth.ports import ObjectInfo, ObjectStore

_BEGIN = b'{"behemoth":'
"""No opcode of pickle begins so: torch's own reader refuses the file at its first byte."""
MAX_FILE_BYTES = 1 << 12

Write = tuple[Step, WriteId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signpost:
    """The records of one write. `was_set`: its file stood in `folder` at some time."""

    step: Step
    write_id: WriteId
    folder: str
    was_set: bool

    @property
    def write(self) -> Write:
        return self.step, self.write_id

    @property
    def file(self) -> str:
        """Key of the file that the program looks for."""
        return signpost_file(self.folder)

    @property
    def records(self) -> tuple[str, str]:
        """Keys of both records, of which either may exist: due, set."""
        return self._key("due"), self._key("set")

    def _key(self, state: SignpostState) -> str:
        return signpost_key(state, self.step, self.write_id, self.folder)


def signposts(store: ObjectStore) -> list[Signpost]:
    """The signposts of all writes that have records, by step. One listing; other keys are ignored."""
    found: dict[tuple[Step, WriteId, str], bool] = {}
    for info in store.list(SIGNPOSTS):
        told = signpost_of_key(info.key)
        if told is not None:
            state, step, write_id, folder = told
            name = (step, write_id, folder)
            found[name] = found.get(name, False) or state == "set"
    return [
        Signpost(step=step, write_id=write_id, folder=folder, was_set=was_set)
        for (step, write_id, folder), was_set in sorted(found.items())
    ]


def make_due(store: ObjectStore, step: Step, write_id: WriteId, folder: str) -> Signpost:
    """Before the commit: durable on return. Idempotent."""
    signpost = Signpost(step=step, write_id=write_id, folder=folder, was_set=False)
    _create(store, signpost.records[0])
    return signpost


def put_up(store: ObjectStore, signpost: Signpost) -> None:
    """After the commit: durable on return. Idempotent, and may be killed anywhere: what is due is put up again. Raises
    Conflict where something else has the file's name."""
    due, was_set = signpost.records
    try:
        store.create(signpost.file, _text(signpost.step))
    except Conflict:
        require_free(store, signpost.folder)
    _create(store, was_set)
    store.delete([due])


def stands(store: ObjectStore, signpost: Signpost) -> bool:
    """Whether the signpost's folder exists, with any contents. One small listing."""
    return any(True for _ in store.list(signpost.folder))


def is_signpost(data: bytes) -> bool:
    """Whether these are the bytes of such a file."""
    return data.startswith(_BEGIN)


def require_free(store: ObjectStore, folder: str) -> None:
    """Raises Conflict for a folder with a file of that name that is none of ours: a checkpoint of torch's own, over
    which a program would take the one for the other. An empty file, as somebody makes by hand, is nobody's."""
    info = find_listed(store, folder, signpost_file(folder))
    if info is None or not info.size_bytes or (info.size_bytes <= MAX_FILE_BYTES and _is_ours(store, info)):
        return
    raise Conflict(
        f"folder {folder}: expected none with a file of that name, or one that Behemoth put up, got "
        f"{info.key} of {info.size_bytes} bytes that something else has made",
        hint="a checkpoint that torch itself saved lies there: save into another folder, or `behemoth ckpt import` it",
        code="signpost-taken",
    )


def take_down(store: ObjectStore, found: Iterable[Signpost], writes: Collection[Write]) -> None:
    """The files of writes that are about to go, or have gone; durable on return. A file that a write which stays has
    too, because it replaced the other, stays."""
    listed = list(found)
    going = {one.file for one in listed if one.write in writes}
    going -= {one.file for one in listed if one.write not in writes}
    if going:
        store.delete(sorted(going))


def forget(store: ObjectStore, found: Iterable[Signpost], writes: Collection[Write]) -> None:
    """The records of writes whose commit and file have gone."""
    keys = [key for one in found if one.write in writes for key in one.records]
    if keys:
        store.delete(keys)


def _create(store: ObjectStore, key: str) -> None:
    with suppress(Conflict):
        store.create(key, b"")


def _is_ours(store: ObjectStore, info: ObjectInfo) -> bool:
    data = read_listed(store, info)
    return data is None or is_signpost(data)


def _text(step: Step) -> bytes:
    told = (
        "this file only says that there is a checkpoint; its data lie in the store that holds this folder. "
        "behemoth.dcp.BehemothReader loads it, `behemoth ckpt list` shows it; torch's own reader cannot"
    )
    return json.dumps({"behemoth": told, "step": step}, separators=(",", ":")).encode() + b"\n"
