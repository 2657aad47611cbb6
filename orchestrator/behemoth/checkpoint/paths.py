"""Keys of a run's checkpoints, relative to the run's root. No I/O; the only place that spells them."""

from __future__ import annotations

import re
from typing import Literal

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step, WriteId

COMMITS = "commits"
STEPS = "steps"
REJECTED = "rejected"
PINS = "pins"
DELETING = "deleting"
SIGNPOSTS = "signposts"
PROBE = "probe"
SIGNPOST_FILE = ".metadata"
"""What programs look for in a folder of theirs (`signposts`): torch's name for its own."""
SignpostState = Literal["due", "set"]
INDEX = "index"
METADATA = "zarr.json"
OWNER = "owner"
OWNER_KEY = f"{OWNER}/run.json"
"""Whose checkpoints these are. In a folder of its own, since a listing of one folder is how its size is told."""
MAX_STEP = 10**9 - 1  # nine digits, so that keys sort as steps do

_WRITE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STEP_KEY = re.compile(rf"steps/(\d{{9}})-({_WRITE_ID.pattern})/.+")
_MARKER_KEY = re.compile(rf"(?:{REJECTED}|{PINS}|{DELETING})/(\d{{9}})-({_WRITE_ID.pattern})\.json")
_SIGNPOST_KEY = re.compile(rf"{SIGNPOSTS}/(due|set)/(\d{{9}})-({_WRITE_ID.pattern})/([^/]+)")
_PROBE_KEY = re.compile(rf"{PROBE}/behemoth-([0-9]{{1,12}})-[0-9a-f]{{16}}")
_COMMIT_KEY = re.compile(r"commits/(\d{9})\.json")


def step_prefix(step: Step, write_id: WriteId) -> str:
    """Prefix of all objects of one write."""
    return f"{STEPS}/{_checked(step, write_id)}"


def commit_key(step: Step) -> str:
    """The record that makes a step's checkpoint exist."""
    return f"{COMMITS}/{step:09d}.json"


def marker_key(folder: str, step: Step, write_id: WriteId) -> str:
    """The object in `rejected/`, `pins/` or `deleting/` that says something of one write."""
    return f"{folder}/{_checked(step, write_id)}.json"


def write_of_marker(key: str) -> tuple[Step, WriteId] | None:
    """The write that a marker is about, or None when no marker of ours has such a key."""
    match = _MARKER_KEY.fullmatch(key)
    return None if match is None else (Step(int(match.group(1))), WriteId(match.group(2)))


def probe_key(began_s: int, number: str) -> str:
    """Key of the object that a probe of a bucket creates. It holds the time at which the probe began, in seconds since
    1970, because listings have no time that both ends agree on. `number`: sixteen hexadecimal digits."""
    return f"{PROBE}/behemoth-{began_s}-{number}"


def probe_began_s(key: str) -> int | None:
    """When the probe that made this object began, or None for a key that no probe makes."""
    match = _PROBE_KEY.fullmatch(key)
    return None if match is None else int(match.group(1))


def signpost_key(state: SignpostState, step: Step, write_id: WriteId, folder: str) -> str:
    """The record that the signpost of a write in `folder` is due, or was set."""
    return f"{SIGNPOSTS}/{state}/{_checked(step, write_id)}/{folder}"


def signpost_of_key(key: str) -> tuple[SignpostState, Step, WriteId, str] | None:
    """State, step, write and folder that a record's key tells, or None when it is no such key."""
    match = _SIGNPOST_KEY.fullmatch(key)
    if match is None:
        return None
    state: SignpostState = "set" if match.group(1) == "set" else "due"
    return state, Step(int(match.group(2))), WriteId(match.group(3)), match.group(4)


def signpost_file(folder: str) -> str:
    """Key of the signpost in a folder that a program has named."""
    return f"{folder}/{SIGNPOST_FILE}"


def rejected_key(step: Step, write_id: WriteId) -> str:
    """The marker that takes a commit back."""
    return marker_key(REJECTED, step, write_id)


def step_of_commit(key: str) -> Step | None:
    """The step that a key below `commits/` names, or None when it is no such key."""
    match = _COMMIT_KEY.fullmatch(key)
    return None if match is None else Step(int(match.group(1)))


def write_of_key(key: str) -> tuple[Step, WriteId] | None:
    """The write that an object below `steps/` belongs to, or None when no write of ours makes such a key."""
    match = _STEP_KEY.fullmatch(key)
    return None if match is None else (Step(int(match.group(1))), WriteId(match.group(2)))


def _checked(step: Step, write_id: WriteId) -> str:
    if not 0 <= step <= MAX_STEP or not _WRITE_ID.fullmatch(write_id):
        raise Invalid(
            f"write {write_id!r} of step {step}: expected a step of 0 .. {MAX_STEP} and an id of letters, digits, "
            "'.', '_' and '-', got others",
            code="write-id",
        )
    return f"{step:09d}-{write_id}"
