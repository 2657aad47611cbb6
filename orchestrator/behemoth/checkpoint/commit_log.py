"""Which checkpoints a run has: lists commits, finds the newest intact one, publishes one, takes one back.

The listing is the truth; there is no pointer that could be ahead of it. Nothing here reads arrays. Neighbours:
`commit_record` for the bytes, `commit` for the proof that must come before `publish`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, NotFound, Timeout, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_record import DAMAGED_HINT, FORMAT_UNKNOWN, MAX_RECORD_BYTES, CommitRecord
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.paths import COMMITS, REJECTED, commit_key, rejected_key, step_of_commit, write_of_marker
from behemoth.checkpoint.small_objects import find_listed, read_listed
from behemoth.ports import DeletesListed, ObjectInfo, ObjectStore
from behemoth.state.effect import CommitRef

_UNREADABLE = WriteId("unreadable")
COMMIT_TAKEN = "commit-taken"
"""Code of the error for a step that another write has."""
BAD_PLACE = "io-error"
"""Code of a store's error for bytes that the disk fails to read or write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCommit:
    """An object below `commits/` that is no usable record. `step` is what its key names, if anything.

    `error` is Corrupt for damage, Invalid with the code `format-unknown` for a record of a newer release, any other for
    one that could not be read: a link, one of another user, a bad place of the disk, a read that the store refuses.
    """

    key: str
    step: Step | None
    error: BehemothError

    @property
    def is_damaged(self) -> bool:
        """Whether it can never be a commit again. Others may be whole, so that nothing may be deleted for them."""
        return isinstance(self.error, Corrupt)

    @property
    def is_unread(self) -> bool:
        """Whether nobody knows what it says."""
        return not self.is_damaged and self.error.code != FORMAT_UNKNOWN


def is_away(error: BehemothError) -> bool:
    """Whether an error says that the store cannot be asked, and nothing of the object that was asked for: nobody calls
    that damage, and whoever goes on to the next object waits as long once more."""
    return isinstance(error, Timeout) or (isinstance(error, Unavailable) and error.code != BAD_PLACE)


def commits(store: ObjectStore) -> list[CommitRef | BadCommit]:
    """Every commit by step, oldest first, without rejected ones. Reads each record: blocks for as many small reads."""
    return [one if isinstance(one, BadCommit) else one.ref for one in records(store)]


def listed_commits(store: ObjectStore) -> list[tuple[ObjectInfo, CommitRef | BadCommit]]:
    """As `commits`, each with what the listing told of its record, by which `remove` knows it."""
    rejected = _rejected(store)
    found = ((info, _look(store, info)) for info in store.list(COMMITS))
    return [
        (info, one if isinstance(one, BadCommit) else one.ref)
        for info, one in found
        if one is not None and not _is_rejected(one, rejected)
    ]


def records(store: ObjectStore) -> Iterator[CommitRecord | BadCommit]:
    """As `commits`, each with its record as it was read: one at a time, since those of giant states have megabytes."""
    rejected = _rejected(store)
    found = (_look(store, info) for info in store.list(COMMITS))
    return (one for one in found if one is not None and not _is_rejected(one, rejected))


def latest(store: ObjectStore) -> CommitRef | None:
    """The newest commit whose record is intact, or None. Its arrays were not looked at.

    Damaged records are passed over, and those that cannot be read. Raises Invalid when the newest readable one needs a
    newer release: going on from an older step would fork the run. Raises the error of one that cannot be read where
    none is left to go on from: what keeps them all away is a matter of the store, not of a record.
    """
    rejected = _rejected(store)
    unread: BadCommit | None = None
    for info in reversed(list(store.list(COMMITS))):
        one = _look(store, info)
        if isinstance(one, BadCommit) and one.error.code == FORMAT_UNKNOWN:
            raise one.error
        if isinstance(one, CommitRecord) and not _is_rejected(one, rejected):
            return one.ref
        if isinstance(one, BadCommit) and one.is_unread:
            unread = unread or one
    if unread is not None:
        raise unread.error
    return None


def has_trace(store: ObjectStore, known: Collection[CommitRef]) -> bool:
    """Whether the store shows one of these commits: whole, rejected, or damaged or unreadable, when only the step can
    be compared."""
    markers = {rejected_key(ref.step, write_id) for ref in known for write_id in (ref.write_id, _UNREADABLE)}
    if markers & _rejected(store):
        return True
    writes = {commit_key(ref.step): ref.write_id for ref in known}
    found = (_look(store, info) for info in store.list(COMMITS) if info.key in writes)
    return any(isinstance(one, BadCommit) or one.write_id == writes[commit_key(one.step)] for one in found if one)


def read_record(store: ObjectStore, ref: CommitRef) -> CommitRecord:
    """The record behind `ref`. Raises NotFound when it is gone, rejected or of another write; Corrupt or Invalid as
    `CommitRecord.decode` does."""
    return read_stored(store, ref)[0]


def read_told(store: ObjectStore, ref: CommitRef, *, record_bytes: int) -> CommitRecord:
    """As `read_record`, for nodes that the leader has told of the commit and of its record's size: one read by key and
    no listing. That the commit was not rejected is taken from the leader. Falls back to `read_record` where the size is
    unknown (0) or is not that of the record."""
    key = commit_key(ref.step)
    if not 0 < record_bytes <= MAX_RECORD_BYTES:
        return read_record(store, ref)
    data = bytearray(record_bytes)
    try:
        store.read_into(key, offset_bytes=0, into=data)
        record = _decoded(key, ref.step, bytes(data))
    except NotFound as error:
        raise _gone(ref) from error
    except Corrupt:  # damage is judged by what stands there, not by a size that somebody told
        return read_record(store, ref)
    if record.write_id != ref.write_id:
        raise _gone(ref)
    return record


def record_sizes(store: ObjectStore) -> dict[Step, int]:
    """Bytes of each commit's record, by step, from one listing."""
    found = ((step_of_commit(info.key), info.size_bytes) for info in store.list(COMMITS))
    return {step: size_bytes for step, size_bytes in found if step is not None}


def read_stored(store: ObjectStore, ref: CommitRef) -> tuple[CommitRecord, bytes]:
    """As `read_record`, with the bytes that lie there: those of a later minor version say more than the record."""
    info = find_listed(store, COMMITS, commit_key(ref.step))
    found = None if info is None else _stored(store, info, ref.step)
    is_taken_back = rejected_key(ref.step, ref.write_id) in _rejected(store)
    if found is None or found[0].write_id != ref.write_id or is_taken_back:
        raise _gone(ref)
    return found


def at_step(store: ObjectStore, step: Step) -> CommitRecord | BadCommit | None:
    """The record at the key of this step's commit, rejected or not; None when there is none."""
    info = find_listed(store, COMMITS, commit_key(step))
    return None if info is None else _look(store, info)


def commit_of(store: ObjectStore, step: Step) -> CommitRef | BadCommit | None:
    """What `commits` has of one step, None where it has nothing. Reads one record and no other."""
    one = at_step(store, step)
    if one is None or _is_rejected(one, _rejected(store)):
        return None
    return one if isinstance(one, BadCommit) else one.ref


def rejected_writes(store: ObjectStore) -> frozenset[tuple[Step, WriteId]]:
    """Every write whose commit was taken back."""
    found = (write_of_marker(info.key) for info in store.list(REJECTED))
    return frozenset(write for write in found if write is not None)


def publish(store: ObjectStore, record: CommitRecord, data: bytes = b"") -> CommitRecord:
    """Create the commit, the one instant at which the checkpoint begins to exist. All it names must be durable.

    `data` are the record's bytes where it was published elsewhere before, which must stay as they are. Returns the
    record that stands: this one, or an earlier one of the same write id. An ambiguous answer is read back. Raises
    Conflict when another write has the step, Unavailable or Timeout when the store could not be asked or its disk
    failed: the record may stand then.
    """
    data = data or record.encode()
    key = commit_key(record.step)
    try:
        _create(store, key, data)
    except Conflict as error:
        return _settle(store, record, data, error)
    return record


def reject(store: ObjectStore, commit: CommitRef | BadCommit, reason: str) -> None:
    """Take a commit back: first a marker that outlives a crash, then the record goes. Its arrays are left to `gc`.

    Idempotent, also once another write has been committed at that step. A record that cannot be read stays: it may be
    another's. Raises Invalid for a key that names no step.
    """
    if commit.step is None:
        assert isinstance(commit, BadCommit)
        raise Invalid(f"reject: expected a commit of a step, got {commit.key!r}", code="reject-key")
    write_id = commit.write_id if isinstance(commit, CommitRef) else _UNREADABLE
    put_up(store, REJECTED, (commit.step, write_id), reason=reason)  # it stands where a crash was between the two steps
    info = find_listed(store, COMMITS, commit_key(commit.step))
    standing = None if info is None else _look(store, info)
    if isinstance(standing, BadCommit):
        is_it = standing.is_damaged
    else:
        is_it = standing is not None and standing.write_id == write_id
    if info is not None and is_it:
        remove(store, [info])


def remove(store: ObjectStore, listed: Iterable[ObjectInfo]) -> None:
    """Delete objects as they were listed, durably on return: records of commits, and others whose names come again. In
    a bucket each goes only if it still is what was listed: a deletion may be carried out when whoever sent it is dead,
    and another write has the step."""
    if not isinstance(store, DeletesListed):
        store.delete([info.key for info in listed])
        return
    for info in listed:
        store.delete_listed(info)


def _settle(store: ObjectStore, record: CommitRecord, data: bytes, conflict: Conflict) -> CommitRecord:
    """The step is taken: by this very write, by a commit that was rejected, or by another write."""
    key = commit_key(record.step)
    info = find_listed(store, COMMITS, key)
    other = None if info is None else _look(store, info)
    if isinstance(other, BadCommit):
        raise _taken(record, "a record that is not readable") from other.error
    if info is not None and other is not None:
        if other.write_id == record.write_id:
            return other
        if not _is_rejected(other, _rejected(store)):
            raise _taken(record, f"write {other.write_id!r}") from conflict
        remove(store, [info])
    _create(store, key, data)
    return record


def _create(store: ObjectStore, key: str, data: bytes) -> None:
    try:
        store.create(key, data)
    except (Unavailable, Timeout) as error:
        # A disk that fails has not made it durable, whatever can be read back.
        if error.code == BAD_PLACE or _standing(store, key) != data:
            raise


def _taken(record: CommitRecord, holder: str) -> Conflict:
    return Conflict(
        f"commit of step {record.step}: expected none, got {holder} when write {record.write_id!r} was to be committed",
        hint="something else saves into the same store: give each a store of its own",
        code=COMMIT_TAKEN,
    )


def _gone(ref: CommitRef) -> NotFound:
    return NotFound(
        f"commit of step {ref.step}, write {ref.write_id!r}: expected it in the store, got none any more",
        code="commit-gone",
    )


def _standing(store: ObjectStore, key: str) -> bytes | None:
    info = find_listed(store, COMMITS, key)
    return None if info is None else _read(store, info)


def _look(store: ObjectStore, info: ObjectInfo) -> CommitRecord | BadCommit | None:
    step = step_of_commit(info.key)
    try:
        if step is None:
            raise Corrupt(f"commit {info.key!r}: expected commits/<nine digits>.json", code="commit-key")
        found = _stored(store, info, step)
        return None if found is None else found[0]
    except (Corrupt, Invalid, Denied, Unavailable) as error:
        if is_away(error):
            raise
        return BadCommit(key=info.key, step=step, error=error)


def _stored(store: ObjectStore, info: ObjectInfo, step: Step) -> tuple[CommitRecord, bytes] | None:
    """The record that was listed, with its bytes; or the one that has taken its place since: of that the size that was
    listed would give a part, or too much, which is no damage."""
    try:
        data = _read(store, info)
        return None if data is None else (_decoded(info.key, step, data), data)
    except Corrupt:
        now = find_listed(store, COMMITS, info.key)
        if now is not None and now.size_bytes == info.size_bytes:
            raise
    data = None if now is None else _read(store, now)
    return None if data is None else (_decoded(info.key, step, data), data)


def _decoded(key: str, step: Step, data: bytes) -> CommitRecord:
    try:
        record = CommitRecord.decode(data)
    except (Corrupt, Invalid) as error:
        raise type(error)(f"{key}: {error.message}", hint=error.hint or DAMAGED_HINT, code=error.code) from error
    if record.step != step:
        raise Corrupt(f"{key}: expected step {step}, got {record.step}", code="commit-key")
    return record


def _read(store: ObjectStore, info: ObjectInfo) -> bytes | None:
    """None when the object went after it was listed."""
    if info.size_bytes > MAX_RECORD_BYTES:
        raise Corrupt(f"commit {info.key!r}: expected at most {MAX_RECORD_BYTES} bytes, got {info.size_bytes}")
    return read_listed(store, info)


def _rejected(store: ObjectStore) -> frozenset[str]:
    return frozenset(info.key for info in store.list(REJECTED))


def _is_rejected(one: CommitRecord | BadCommit, rejected: frozenset[str]) -> bool:
    return isinstance(one, CommitRecord) and rejected_key(one.step, one.write_id) in rejected
