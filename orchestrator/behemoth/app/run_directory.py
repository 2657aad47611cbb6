"""Everything that one run leaves on this machine, in one directory, and the lock that keeps two processes out of it.

    run.yaml         the run as it was first started; a later start must say the same
    identity.json    which run this is, and where its store lies when that is elsewhere
    checkpoints/     the default store
    logs/            one file per rank and attempt, one per agent
    evidence.jsonl   the journal; events.jsonl: what happened, for people; summary.json: how it ended
    coordinator.json where the coordinator listens and under which term
    drain.json       which checkpoint is in the second store, where the run names one
    secret           from which agents' tokens are made; readable by the owner only

Small files are replaced whole or not at all. Neighbour: `journal_file`, which owns evidence.jsonl.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from behemoth.base.ids import Epoch, RunUid, Step
from behemoth.storage.folders import make_root, sync_folder

SECRET_BYTES = 32

_FIRST_NAMES = {"lock", "logs", ".identity.json.new"}
"""Files that a start which was cut off may have left before the directory has its identity."""

T = TypeVar("T")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What makes the run in this directory this run; written once."""

    format: int = 1
    run_uid: RunUid
    name: str
    store: str | None = None
    """Absolute path of the store that the run file names, as it was where the run began. None for the store in this
    directory, which moves with it, and in directories of releases that did not keep it."""
    drain: str | None = None
    """Likewise of the second store that the run file names; None where it names none."""


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """The newest coordinator. `pid` is for people; no code depends on it."""

    format: int = 1
    epoch: Epoch
    port: int
    pid: int


class DrainState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the second store is. `step` is that of the newest checkpoint there, None for none; `at_us`, `num_bytes`
    and `seconds` are of the last drain that succeeded, 0 where none did since the run began. `trouble` says why the
    last one failed, or what was to go there then stays, empty when neither."""

    format: int = 1
    url: str
    step: Step | None
    at_us: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    trouble: str = ""


class RunDirectory:
    """Paths of one run. `open` creates what is missing and takes the lock; reading verbs need no lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.journal = path / "evidence.jsonl"
        self.events = path / "events.jsonl"
        self.summary = path / "summary.json"
        self.document = path / "run.yaml"
        self._identity = path / "identity.json"
        self._term = path / "coordinator.json"
        self._drain = path / "drain.json"
        self._secret = path / "secret"
        self._lock_fd = -1

    def open(self) -> None:
        """Creates the directory, durably, and locks it until `close` or the end of the process.

        Raises Conflict when another process runs here, Denied or Unavailable when the directory cannot be made, and
        Invalid for a directory that holds something else than a run: its files would be overwritten.
        """
        self._check_ours()
        try:
            make_root(os.path.realpath(self.path))
            self._lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.logs.mkdir(exist_ok=True)
            if not os.access(self.logs, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)} for its folder logs")
        except OSError as error:
            self.close()
            raise refusal(self.path, "create the run directory", error) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise Conflict(
                f"run directory {self.path}: expected nobody else to run here, got another live `behemoth run`",
                hint="wait for it, stop it with Ctrl-C, or name another directory with --dir",
                code="run-locked",
            ) from error
        self._check_lock_stands()

    def _check_lock_stands(self) -> None:
        """Raises Conflict when the lock file was removed while it was locked: such a lock excludes nobody."""
        try:
            stands = os.path.samestat(os.fstat(self._lock_fd), os.stat(self.path / "lock"))
        except FileNotFoundError:
            stands = False
        if not stands:
            self.close()
            raise Conflict(
                f"run directory {self.path}: expected it to stay, got it removed while it was locked",
                hint="run the same command again",
                code="run-locked",
            )

    def _check_ours(self) -> None:
        """Raises Invalid for a directory with other files than a run's. A new run needs an empty one, or one in which a
        start was cut off, which has a lock file."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise refusal(self.path, "read it", error) from error
        foreign = names - _FIRST_NAMES if "lock" in names else names
        if foreign and self._identity.name not in names:
            raise Invalid(
                f"run directory {self.path}: expected an empty directory or one of a run, got {len(names)} other "
                f"files ({', '.join(sorted(foreign)[:4])})",
                hint="name another directory with --dir; a run keeps everything in a directory of its own",
                code="run-directory-foreign",
            )

    def close(self) -> None:
        """Releases the lock. Idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def identity(self) -> Identity | None:
        """None in a fresh directory. Raises Corrupt when the file is not what was written."""
        return _read(self._identity, Identity)

    def is_of(self, run_uid: RunUid) -> bool:
        """Whether this is the directory of that run; False when the identity cannot be read."""
        try:
            identity = self.identity()
        except BehemothError:
            return False
        return identity is not None and identity.run_uid == run_uid

    def has_own_store(self, root: str) -> bool:
        """Whether the store at this path is the one within the directory, which moves and is copied with it."""
        identity = self.identity()
        is_within = os.path.realpath(self.checkpoints) == os.path.realpath(root)
        return identity is not None and identity.store is None and is_within

    def is_beginning(self) -> bool:
        """Whether no start came as far as its first line in journal or events: nothing has happened here yet."""
        return not any(path.exists() and path.stat().st_size for path in (self.journal, self.events))

    def found(
        self, name: str, store: str | None, *, drain: str | None = None, run_uid: RunUid | None = None
    ) -> Identity:
        """Makes this directory that of a run; `store` and `drain` as in `Identity`. `run_uid`: of a start that came to
        nothing, whose store it may have taken already."""
        identity = Identity(run_uid=run_uid or RunUid(secrets.token_hex(8)), name=name, store=store, drain=drain)
        self._replace(self._identity, msgspec.json.encode(identity) + b"\n")
        return identity

    def read_document(self) -> bytes:
        """The run as it was first started. Raises NotFound when the file is gone, and `refusal`'s errors."""
        try:
            return self.document.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                f"{self.document}: expected the run as it was first started, got no such file",
                hint="put it back, or write into it what the run file says; or start in another directory with --dir",
                code="run-document-gone",
            ) from error
        except OSError as error:
            raise refusal(self.document, "read it", error) from error

    def term(self) -> Term | None:
        return _read(self._term, Term)

    def begin_term(self, term: Term) -> None:
        """Durable when it returns: the epoch is raised before anybody acts under it. The summary of the former term
        goes first, since it tells of a state that is about to be left behind."""
        try:
            self.summary.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(self.summary, "remove it", error) from error
        self._replace(self._term, msgspec.json.encode(term) + b"\n")

    def secret(self) -> bytes:
        """The run's secret, made at its first use with mode 0600."""
        try:
            secret = self._secret.read_bytes()
        except FileNotFoundError:
            secret = secrets.token_bytes(SECRET_BYTES)
            self._replace(self._secret, secret, mode=0o600)
        if len(secret) != SECRET_BYTES:
            raise Corrupt(
                f"{self._secret}: expected {SECRET_BYTES} bytes, got {len(secret)}",
                hint="remove the file; agents of an earlier coordinator will be refused",
                code="secret-corrupt",
            )
        return secret

    def write_document(self, text: str) -> None:
        """Readable by the owner only: the environment of a workload may hold secrets."""
        self._replace(self.document, text.encode(), mode=0o600)

    def drain(self) -> DrainState | None:
        """None where nothing was told of a second store."""
        return _read(self._drain, DrainState)

    def write_drain(self, state: DrainState) -> None:
        self._replace(self._drain, msgspec.json.encode(state) + b"\n")

    def write_summary(self, summary: dict[str, object]) -> None:
        self._replace(self.summary, json.dumps(summary, indent=2).encode() + b"\n")

    def _replace(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Whole or not at all, durable when it returns."""
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(os.fspath(self.path))
        except OSError as error:
            raise refusal(path, "write it", error) from error


def existing(path: Path) -> RunDirectory:
    """The directory of a run that has begun, for verbs that only read. Raises NotFound."""
    directory = RunDirectory(path)
    if directory.identity() is None:
        raise NotFound(
            f"run directory {path}: expected a run there, got none",
            hint="name a run under ./runs, or the path of its directory",
            code="run-not-found",
        )
    return directory


def refusal(path: Path, wish: str, error: OSError) -> BehemothError:
    """A Behemoth error for an OSError: `path` and what was to be done with it (`wish`: "write it")."""
    said = f"{path}: expected to {wish}, got {error.strerror or error}"
    if isinstance(error, PermissionError):
        return Denied(said, hint="check the owner and the mode of the directory", code="path-denied")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return Invalid(said, hint="a file stands where a directory is needed; name another one with --dir", code="path")
    if error.errno == errno.ENAMETOOLONG:
        return Invalid(said, hint="choose a shorter path", code="path")
    return Unavailable(said, hint="free space or name a directory on another disk with --dir", code="path-unavailable")


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refusal(path, "read it", error) from error
    try:
        return decode_json(data, kind)
    except UNDECODABLE as error:
        raise Corrupt(
            f"{path}: expected {kind.__name__}, got: {told(error)}",
            hint="the file was changed by hand or the disk lost it; start in another directory with --dir",
            code="run-directory-corrupt",
        ) from error
