"""What the verbs of `behemoth ckpt` have in common: their arguments, and which checkpoints these mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from behemoth.base.errors import BehemothError, Corrupt, NotFound
from behemoth.checkpoint.commit_log import BadCommit, commits, records
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.marker import Marker, read_marker
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.paths import PINS, REJECTED, write_of_marker
from behemoth.checkpoint.pins import lost_pins
from behemoth.checkpoint.small_objects import of_each
from behemoth.ports import ObjectInfo, ObjectStore
from behemoth.state.effect import CommitRef
from behemoth_cli.commands.candidates import run_names
from behemoth_cli.context import Checkpoints
from behemoth_cli.views.checkpoints import Found, State

_FOREIGN = "not a file of behemoth: a commit is called commits/<nine digits>.json"

Where = Annotated[
    str,
    typer.Argument(
        metavar="WHERE",
        help="run/NAME, a run directory, or the path or URL of a store.",
        show_default=False,
        autocompletion=run_names,
    ),
]
Step = Annotated[int | None, typer.Option("--step", metavar="N", min=0, help="The checkpoint of this step.")]
NewStore = Annotated[
    str, typer.Option("--to", metavar="WHERE", help="Path or URL of a store that is no run's.", show_default=False)
]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, max=256, help="Threads that read and check.")]


def chosen(
    store: ObjectStore, place: Checkpoints, step: int | None, *, may_be_none: bool = False
) -> list[CommitRef | BadCommit]:
    """All checkpoints, or that of `step`. Raises NotFound when there is none, unless that `may_be_none`."""
    all_commits = commits(store)
    found = [one for one in all_commits if step is None or one.step == step]
    if found or may_be_none:
        return found
    steps = ", ".join([str(one.step) for one in all_commits if one.step is not None][-8:])
    wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
    raise NotFound(
        f"{name_of(place)}: expected {wanted}, got none",
        hint=f"there are checkpoints of step {steps}" if steps else "nothing was committed there yet",
        code="checkpoint-not-found",
    )


def standing(store: ObjectStore, place: Checkpoints, step: int | None) -> CommitRef:
    """The newest one, or that of `step`. Raises NotFound, or the error of its record: damage, or a newer format."""
    return _usable([one for one in chosen(store, place, step) if one.step is not None], place)


def intact(store: ObjectStore, place: Checkpoints, step: int | None, *, note: Callable[[str], None]) -> CommitRef:
    """As `standing`, but without a step the newest whose record can be used; `note` is told of those passed over."""
    found = [one for one in chosen(store, place, step) if one.step is not None]
    usable = [one for one in found if step is not None or isinstance(one, CommitRef)]
    taken = _usable(usable, place)
    for one in found[found.index(taken) + 1 :]:
        if isinstance(one, BadCommit):
            note(f"warning: checkpoint/{taken.step} is taken, and a newer one passed over: {one.error.message}")
    return taken


def _usable(found: Sequence[CommitRef | BadCommit], place: Checkpoints) -> CommitRef:
    """The newest one."""
    if not found:
        raise Corrupt(
            f"{name_of(place)}: expected an intact checkpoint, got damaged ones only",
            hint=f"`behemoth ckpt verify {name_of(place)}` names the damage",
            code="checkpoints-damaged",
        )
    newest = found[-1]
    if isinstance(newest, BadCommit):
        raise newest.error
    return newest


def name_of(place: Checkpoints) -> str:
    """A checkpoint as messages name it."""
    return f"run/{place.run}" if place.run else place.url


def found_of(one: CommitRecord | CommitRef | BadCommit, pin: str | None = None) -> Found:
    """A commit as a row, as it was listed; `pin` as in `Found`."""
    if not isinstance(one, BadCommit):
        record = one if isinstance(one, CommitRecord) else None
        return Found(step=one.step, write_id=one.write_id, state="ok", record=record, reason="", pin=pin)
    if one.step is None:
        return Found(step=None, write_id="", state="foreign", record=None, reason=_FOREIGN, key=one.key)
    state: State = "damaged" if one.is_damaged else "unreadable" if one.is_unread else "newer"
    return Found(step=one.step, write_id="", state=state, record=None, reason=one.error.message, pin=pin)


def all_found(store: ObjectStore) -> list[Found]:
    """All checkpoints of a store by step, rejected ones among them, with their pins."""
    pins = pins_of(store)
    found = [found_of(one, _pin_of(one, pins)) for one in records(store)]
    found += _rejected(store, pins)
    found += _gone(store, pins, found)
    return sorted(found, key=lambda one: (-1 if one.step is None else one.step, one.state == "ok"))


def pins_of(store: ObjectStore) -> dict[tuple[int, str], str]:
    """Why each pinned write is pinned. One whose marker cannot be read is pinned all the same."""
    writes = ((write_of_marker(info.key), reason) for info, reason in _reasons(store, PINS))
    return {write: reason for write, reason in writes if write is not None}


def still_there(store: ObjectStore, found: Found) -> bool:
    """A live run's retention may delete what is being verified; that is no damage. A record that cannot be read any
    more is there."""
    return found.state != "ok" or any(
        one.step == found.step and (isinstance(one, BadCommit) or one.write_id == found.write_id)
        for one in commits(store)
    )


def opened(store: ObjectStore, ref: CommitRef) -> Commit:
    """As `open_commit`. Raises NotFound too when the checkpoint is deleted meanwhile."""
    with unless_deleted(store, ref):
        return open_commit(store, ref)


@contextmanager
def unless_deleted(store: ObjectStore, ref: CommitRef) -> Iterator[None]:
    """For a block that reads a checkpoint, which a live run's retention, or `gc`, may delete meanwhile. Raises NotFound
    then, instead of the damage that was found."""
    try:
        yield
    except (Corrupt, NotFound):
        require_still_there(store, ref)
        raise


def require_still_there(store: ObjectStore, ref: CommitRef) -> None:
    """Raises NotFound when a checkpoint that seems damaged was in fact deleted while it was read."""
    if ref not in commits(store):
        raise NotFound(
            f"checkpoint/{ref.step}: expected it to stay while it was read, got it deleted",
            hint="retention gave it up: take the newest one",
            code="checkpoint-gone",
        )


def _pin_of(one: CommitRecord | BadCommit, pins: dict[tuple[int, str], str]) -> str | None:
    """A record that cannot be read does not tell its write: whatever is pinned of its step may be it."""
    if isinstance(one, CommitRecord):
        return pins.get((one.step, one.write_id))
    return next((reason for (step, _), reason in pins.items() if step == one.step), None)


def _gone(store: ObjectStore, pins: dict[tuple[int, str], str], found: Sequence[Found]) -> Iterator[Found]:
    """What is pinned and in no other row."""
    told = {(one.step, one.write_id) for one in found}
    for write in sorted(lost_pins(store) - told) if pins.keys() - told else ():
        reason = "its commit is not in the store"
        yield Found(step=write[0], write_id=write[1], state="gone", record=None, reason=reason, pin=pins.get(write, ""))


def _rejected(store: ObjectStore, pins: dict[tuple[int, str], str]) -> Iterator[Found]:
    for info, reason in _reasons(store, REJECTED):
        write = write_of_marker(info.key)
        yield Found(
            step=write[0] if write is not None else None,
            write_id=write[1] if write is not None else "",
            state="rejected",
            record=None,
            reason=reason,
            pin=pins.get(write) if write is not None else None,
        )


def _reasons(store: ObjectStore, folder: str) -> Iterator[tuple[ObjectInfo, str]]:
    """All markers of a folder, each with its reason."""
    return of_each(lambda info: (info, _reason(store, info)), store.list(folder))


def _reason(store: ObjectStore, info: ObjectInfo) -> str:
    """The reason in a pin's marker, or that the marker is damaged: its name alone counts."""
    try:
        marker: Marker | None = read_marker(store, info)
    except BehemothError as error:
        return error.message
    return marker.reason if marker is not None else ""
