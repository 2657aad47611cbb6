"""The owner of a store: one small object that names the one run which may write, reject and delete there.

Two coordinators on one store are two histories under the same names: each would restore what the other saved, and the
clean-up of one would delete what the other has written and not yet committed. The lock of a run directory cannot see
that, so the store itself says whose it is. A store without the object, made by an older release or taken over on
purpose, belongs to the run that comes first. Neighbours: `gc`, which never deletes it, and `verify`, which checks it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from behemoth.base.errors import Conflict, Corrupt, Timeout, Unavailable
from behemoth.base.ids import RunUid
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.framing import framed
from behemoth.checkpoint.paths import OWNER, OWNER_KEY
from behemoth.checkpoint.small_objects import find_listed, read_listed
from behemoth.checkpoint.versioned import decode_versioned
from behemoth.ports import ObjectInfo, ObjectStore

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
MAX_OWNER_BYTES = 1 << 16
OWNED = "store-owned"
"""Code of the error for a store of another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The run that a store belongs to. `run_uid` alone decides; `name` and `directory` tell people where it is, and a
    run directory may have been moved since."""

    format: FormatVersion
    run_uid: RunUid
    name: str
    directory: str

    @staticmethod
    def of_run(run_uid: RunUid, *, name: str, directory: str) -> Owner:
        """In the format of this release."""
        form = FormatVersion(major=FORMAT_MAJOR, minor=FORMAT_MINOR)
        return Owner(format=form, run_uid=run_uid, name=name, directory=directory)

    def encode(self) -> bytes:
        """One line: the record and the CRC-32C of its bytes."""
        return framed(msgspec.json.encode(self))

    @staticmethod
    def decode(data: bytes) -> Owner:
        """Raises Corrupt unless every bit is as written, Invalid for a format of a newer release."""
        return decode_versioned(data, Owner, name="owner", major=FORMAT_MAJOR)


def read_owner(store: ObjectStore) -> Owner | None:
    """None for a store that nobody owns. Raises Corrupt for a damaged object and Invalid for one of a newer release:
    whose the store is cannot be told then, so nobody may write there."""
    data = _stored(store)
    return None if data is None else _decoded(data)


def refuse_other(store: ObjectStore, run_uid: RunUid | None, *, url: str) -> Owner | None:
    """What says whose the store is, if anything does. Raises Conflict when it belongs to another run than this one
    (None: one that has yet to begin), and what `read_owner` raises. Reads only."""
    owner = read_owner(store)
    if owner is not None and owner.run_uid != run_uid:
        raise _owned_by(owner, url=url)
    return owner


def require_own(store: ObjectStore, run_uid: RunUid, *, url: str) -> None:
    """Raises Conflict unless the store still belongs to this run, which has taken it; asked before a leader writes."""
    if refuse_other(store, run_uid, url=url) is None:
        raise Conflict(
            f"checkpoint store {url}: expected it to be this run's, got one that names no owner ({OWNER_KEY} is gone)",
            hint="it was removed or exchanged while the run was going on: put it back, or stop this run, remove what "
            "is left of the store, and start again",
            code=OWNED,
        )


def require_there(store: ObjectStore, *, url: str) -> None:
    """Raises Unavailable unless a run has taken the store. A file system that is not mounted looks like a store without
    checkpoints, and none of those must be given up for that. Reads nothing but a listing."""
    if find_listed(store, OWNER, OWNER_KEY) is None:
        raise Unavailable(
            f"checkpoint store {url}: expected the store of a run, got a place without one ({OWNER_KEY} is gone)",
            hint="mount it, or put it back, and run the same command again",
            code="store-away",
        )


def take(store: ObjectStore, owner: Owner, *, url: str) -> None:
    """Make the store this run's, or find that it is. Idempotent, durable on return. Raises Conflict when another run
    was first, however close, and the store's errors.

    A run whose directory was moved says so here, or the place where it was would still count as the true one. At no
    time is the store nobody's."""
    data = _stored(store)
    standing = _create(store, owner) if data is None else _decoded(data)
    if data is not None and standing.run_uid == owner.run_uid and standing.directory != owner.directory:
        store.replace(OWNER_KEY, old=data, new=owner.encode())
    if standing.run_uid != owner.run_uid:
        raise _owned_by(standing, url=url)


def _owned_by(owner: Owner, *, url: str) -> Conflict:
    """The refusal, with both ways out."""
    place = url.partition("?")[0].rstrip("/")  # how a bucket is reached stands behind it
    return Conflict(
        f"checkpoint store {url}: expected one of no run, or of this one, got that of run/{owner.name} in "
        f"{owner.directory}",
        hint=f"go on with that run (--dir {owner.directory}), or name another store in the run file; if that run is "
        f"over or its directory is gone, remove {place}/{OWNER_KEY} and this run takes its checkpoints over",
        code=OWNED,
    )


def _create(store: ObjectStore, owner: Owner) -> Owner:
    """The object that stands then: this one, or that of whoever was first. An ambiguous answer is read back."""
    try:
        store.create(OWNER_KEY, owner.encode())
    except (Conflict, Unavailable, Timeout):
        standing = read_owner(store)
        if standing is None:
            raise
        return standing
    return owner


def _stored(store: ObjectStore) -> bytes | None:
    info = find_listed(store, OWNER, OWNER_KEY)
    return None if info is None else _read(store, info)


def _decoded(data: bytes) -> Owner:
    try:
        return Owner.decode(data)
    except Corrupt as error:
        hint = f"if the checkpoints are this run's, remove {OWNER_KEY} from the store: the run writes it anew"
        raise Corrupt(f"{OWNER_KEY}: {error.message}", hint=hint, code=error.code) from error


def _read(store: ObjectStore, info: ObjectInfo) -> bytes | None:
    """None when it went after it was listed."""
    if info.size_bytes > MAX_OWNER_BYTES:
        raise Corrupt(
            f"{OWNER_KEY}: expected at most {MAX_OWNER_BYTES} bytes, got {info.size_bytes}", code="owner-rubbish"
        )
    return read_listed(store, info)
