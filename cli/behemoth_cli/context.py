"""What every verb needs: the console, and how arguments that name runs, checkpoints and files are resolved.

`RUN` is a name under ./runs, `run/NAME`, or the path of a run directory; where checkpoints are asked for, it may also
be the path or URL of a store. Nothing is guessed silently: a default is printed to stderr.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from behemoth.base.errors import BehemothError, Denied, Invalid, NotFound, Unavailable
from behemoth_cli.errors import nearest
from behemoth_cli.out.console import FORMATS, Console, Format

if TYPE_CHECKING:
    from behemoth.app.run_directory import RunDirectory
    from behemoth.spec.run import TrainingRun
    from behemoth_cli.views.status import Look

RUNS = Path("runs")
MAX_FILE_BYTES = (16 << 20) + 1
"""One more than the largest file that any decoder takes; a device or a pipe may have no end."""
PREFIX = "run/"
_FOLDERS = ("commits", "steps", "rejected", "owner")
"""Folders of a store; a store that was ever written to has one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Global options and the console. Made once by the root command; verbs get it as typer's context object."""

    console: Console
    is_verbose: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """A place with checkpoints: the store's URL, and the name of the run and its directory when one was named."""

    url: str
    run: str
    directory: Path | None = None


def chosen_format(text: str, *allowed: Format) -> Format:
    """The value of `-o`. Raises Invalid for one that the verb does not have."""
    if not text:
        return ""
    for name in allowed:
        if name == text:
            return name
    listed = ", ".join(allowed)
    raise Invalid(
        f"option -o: expected one of {listed}, got {text!r}",
        # A format of another verb is no slip of the fingers, so none is near.
        hint=("" if text in FORMATS else nearest(text, allowed)) or f"formats here: {listed}",
        code="unknown-name",
    )


def run_directories() -> list[RunDirectory]:
    """Runs under ./runs, by name."""
    from behemoth.app.run_directory import RunDirectory

    return [RunDirectory(path) for path in run_paths()]


def run_paths() -> list[Path]:
    """Directories of runs under ./runs, by name. Those without read permission, and those that are not runs, are left
    out."""
    return sorted(path for path in RUNS.glob("*") if os.path.exists(path / "identity.json"))


def find_run(text: str | None, console: Console) -> RunDirectory:
    """The run that `text` names; without one, the run under ./runs that last wrote something. Raises NotFound."""
    if text is None:
        return _newest(console)
    from behemoth.app.run_directory import existing

    try:
        return existing(_run_path(text))
    except NotFound as error:
        known = [directory.path.name for directory in run_directories()]
        hint = nearest(_bare(text), known) or (f"runs here: {', '.join(known[:8])}" if known else error.hint)
        raise NotFound(error.message, hint=hint, code=error.code) from error


def look_at(directory: RunDirectory) -> Look:
    """Read a run directory without its lock, while a run may go on writing there. Raises Corrupt for damage."""
    from behemoth.app.event_log import read_events
    from behemoth.app.history import read_history
    from behemoth.app.snapshot import snapshot
    from behemoth.reconcile.decide import decide
    from behemoth.reconcile.ledger import books
    from behemoth_cli.views.status import Look

    identity = directory.identity()
    name = identity.name if identity is not None else directory.path.name
    holder_pid = lock_holder(directory.path / "lock")  # before the journal: its holder may end it meanwhile
    history = read_history(directory.journal.read_bytes() if directory.journal.exists() else b"")
    seen, ledger = history.observation, history.books.ledger
    kept = {commit.write_id for commit in seen.commits} - seen.deleting if seen is not None else set()
    return Look(
        name=name,
        path=str(directory.path),
        holder_pid=holder_pid,
        snapshot=None
        if seen is None
        else snapshot(
            name,
            seen,
            decide(seen).status,
            now_us=seen.now_us,
            vitals=None,
            connected={},
            is_led=holder_pid is not None,
        ),
        num_ranks=seen.num_ranks if seen is not None else 0,
        ranks_per_node=seen.config.ranks_per_node if seen is not None else 0,
        spent=books(ledger, seen.now_us) if ledger is not None and seen is not None else None,
        saves=[row for row in history.saves.rows if row.write_id in kept],
        events=read_events(directory.events),
        drain=directory.drain(),
    )


def look_or_trouble(directory: RunDirectory) -> Look:
    """As `look_at`, for one row of a listing: damage becomes `Look.trouble` instead of an error. The name is then that
    of the folder, since a damaged identity has none."""
    from behemoth_cli.views.status import Look, Trouble

    try:
        return look_at(directory)
    except (Denied, Unavailable) as error:
        trouble = Trouble(state="unreadable", message=error.message)
    except BehemothError as error:
        trouble = Trouble(state="damaged", message=error.message)
    except OSError as error:
        trouble = Trouble(state="unreadable", message=f"{error.filename}: {error.strerror or error}")
    return Look(
        name=directory.path.name,
        path=str(directory.path),
        holder_pid=lock_holder(directory.path / "lock"),
        snapshot=None,
        num_ranks=0,
        ranks_per_node=0,
        spent=None,
        saves=(),
        events=(),
        trouble=trouble,
    )


def lock_holder(path: Path) -> int | None:
    """The process that holds a lock on this file, None for nobody.

    Read from the kernel's list (proc(5), /proc/locks), because to try the lock would for a moment keep others out.
    0 stands for a process of another namespace.
    """
    try:
        inode = str(path.stat().st_ino)
        table = Path("/proc/locks").read_text()
    except OSError:
        return None
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            return max(0, int(words[4]))
    return None


def find_checkpoints(text: str) -> Checkpoints:
    """The store that `where` names: of a run, or at a path or URL. Raises NotFound, Invalid."""
    from behemoth.app.run_directory import RunDirectory
    from behemoth.app.start_run import store_root
    from behemoth.storage.open import is_s3, path_of

    if is_s3(text):
        return _find_in_bucket(text)
    if "://" not in text:
        directory = RunDirectory(_run_path(text))
        identity = directory.identity()
        if identity is not None:
            _require_one_meaning(text, directory.path)
            run = read_run(directory.document)
            return Checkpoints(url=store_root(run, directory, identity), run=identity.name, directory=directory.path)
    path = Path(path_of(text))
    if text.startswith(PREFIX) or not path.is_dir():
        got = "nothing of that name" if text.startswith(PREFIX) or not path.exists() else "another file"
        raise NotFound(
            f"{text}: expected a run or a folder with checkpoints, got {got}",
            hint=_nearest_run(text) or "name run/NAME, a run directory, or the path or URL of a checkpoint store",
            code="checkpoints-not-found",
        )
    if not _has_checkpoints(path):
        raise NotFound(
            f"{text}: expected a folder with checkpoints (commits/ and steps/), got one without",
            hint=f"name the store, which is the folder above: {path.parent}"
            if _has_checkpoints(path.absolute().parent)
            else "the checkpoints of a run lie in its folder checkpoints/ unless spec.checkpoint.store names another",
            code="checkpoints-not-found",
        )
    return Checkpoints(url=str(path), run="")


def _require_one_meaning(text: str, found: Path) -> None:
    """The name of a run may be that of a store here too, and some verbs delete. Raises Invalid."""
    here = Path(text)
    if found != here and not text.startswith(PREFIX) and _has_checkpoints(here):
        raise Invalid(
            f"{text}: expected one meaning, got run/{text} and the folder ./{text}, which has checkpoints",
            hint=f"write run/{text} or ./{text}",
            code="checkpoints-ambiguous",
        )


def _has_checkpoints(path: Path) -> bool:
    return any((path / name).is_dir() for name in _FOLDERS)


def _find_in_bucket(url: str) -> Checkpoints:
    from behemoth.storage.open import open_store

    with closing(open_store(url)) as store:
        if not any(any(store.list(name)) for name in _FOLDERS):
            raise NotFound(
                f"{store.root}: expected a prefix with checkpoints (commits/ and steps/) below it, got one without",
                hint="correct bucket and prefix; without a prefix: s3://BUCKET",
                code="checkpoints-not-found",
            )
    return Checkpoints(url=url, run="")


def read_run(path: Path) -> TrainingRun:
    """Read and decode a run file. Raises Invalid for its content, and the errors of `read_file`."""
    from behemoth.spec.decode import decode_run

    return decode_run(read_file(path), source=str(path))


def read_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file, or its beginning. Raises NotFound, Denied or Invalid naming the file."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)  # what is longer is refused as too large by whoever decodes it
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BehemothError:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            siblings = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            hint = nearest(path.name, siblings)
            return NotFound(f"{path}: expected a file, got nothing of that name", hint=hint, code="file-not-found")
        case IsADirectoryError():
            files = sorted(entry.name for entry in path.glob("*.y*ml"))
            hint = f"name a file in it: {', '.join(files[:5])}" if files else "name a file"
            return Invalid(f"{path}: expected a file, got a directory", hint=hint, code="file-is-directory")
        case PermissionError():
            hint = "check the owner and the mode of the file"
            return Denied(f"{path}: expected to read it, got {error.strerror}", hint=hint, code="file-denied")
        case _:
            return Invalid(f"{path}: expected to read it, got {error.strerror or error}", code="file-unreadable")


def _run_path(text: str) -> Path:
    if not text:
        raise Invalid("run: expected a name or a path, got an empty text", code="run-name")
    if text.startswith(PREFIX):
        return RUNS / text.removeprefix(PREFIX)
    named = RUNS / text
    is_name = "/" not in text and text not in (".", "..")
    return named if is_name and (named.is_dir() or not Path(text).is_dir()) else Path(os.path.expanduser(text))


def _bare(text: str) -> str:
    return text.removeprefix(PREFIX).rstrip("/").rpartition("/")[2]


def _nearest_run(text: str) -> str:
    return nearest(_bare(text), [directory.path.name for directory in run_directories()])


def _newest(console: Console) -> RunDirectory:
    found = run_directories()
    if not found:
        raise NotFound(
            "run: expected one under ./runs, got none",
            hint="`behemoth run FILE` starts one here; or name the path of a run directory",
            code="run-not-found",
        )
    newest = max(found, key=lambda directory: _changed_ns(directory.journal))
    if len(found) > 1:
        console.note(f"run/{newest.path.name}, the latest of {len(found)} under ./runs")
    return newest


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
