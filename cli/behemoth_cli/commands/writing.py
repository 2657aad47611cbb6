"""What import and reshard have in common: the target store, the write, and its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from behemoth.app.batches.jobs import Work
from behemoth.app.batches.writing import Writing, finished, new_write, require_written, write_in_batches
from behemoth.app.import_lock import importing
from behemoth.app.run_directory import RunDirectory, refusal
from behemoth.base.errors import BehemothError, Conflict, Invalid
from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_log import COMMIT_TAKEN
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.discarding import discard_write
from behemoth.checkpoint.interop.ingest import TAKEN, check_free, write_checkpoint
from behemoth.checkpoint.interop.object_uploads import ObjectUploads
from behemoth.checkpoint.interop.unit_writer import Written
from behemoth.checkpoint.paths import COMMITS, OWNER, REJECTED, STEPS
from behemoth.ports import SavesTo
from behemoth.storage.open import is_nested, is_s3, open_store
from behemoth.storage.probe_uploads import probe_bucket
from behemoth_cli.commands.batching import Batching
from behemoth_cli.commands.interop_options import folder_to_be, watched
from behemoth_cli.context import PREFIX, RUNS

if TYPE_CHECKING:
    from behemoth.storage.local import LocalStore
    from behemoth.storage.s3 import S3Store

TARGET = "a checkpoint store, or a folder that is empty or not there"
TARGET_HINT = "name a folder of its own; a run takes it over when spec.checkpoint.store and its name lead there"
FIRST = Attempt(1)


class Made(NamedTuple):
    """The write that was committed; `is_kept`: by another call of the same command."""

    write_id: WriteId
    is_kept: bool


@contextmanager
def opened_target(to: str, *, code: str, is_dry: bool) -> Iterator[LocalStore | S3Store]:
    """The store that is written to. A bucket's server is tried out before the first byte. Raises Conflict, with
    `code`, for a run and for a folder of something else, and Invalid for the bare name of a run."""
    if to.startswith(PREFIX) or ("://" not in to and RunDirectory(Path(to)).identity() is not None):
        raise Conflict(f"option --to {to}: expected {TARGET}, got a run", hint=TARGET_HINT, code=code)
    if not is_s3(to):
        require_one_meaning(to, hint=f"write ./{to} for the folder; into the store of a run nothing else is written")
        store_to_be(to, expected=TARGET, hint=TARGET_HINT, code=code)
    with closing(open_store(to)) as store:
        if not is_dry:
            probe_bucket(store, url=store.root)
        yield store


def require_one_meaning(to: str, *, hint: str) -> None:
    """Raises Invalid for the bare name of a run under ./runs: everywhere else it means that run, and not a folder."""
    if Path(to).name == to and RunDirectory(RUNS / to).identity() is not None:
        raise Invalid(
            f"option --to {to}: expected one meaning, got run/{to} and the folder ./{to}",
            hint=hint,
            code="checkpoints-ambiguous",
        )


def require_apart(source: str, to: str, *, code: str) -> None:
    """Raises Invalid for a target within the source store: its files would be foreign there."""
    if is_nested(source, to):
        raise Invalid(
            f"option --to {to}: expected a place outside {source}, got the same place, or one within the other",
            hint="what lies within a store is lost with it, and its run may clear it away",
            code=code,
        )


def store_to_be(text: str, *, expected: str, hint: str, code: str) -> Path:
    """A store is made where nothing is; a folder of something else is no place for one. Raises Conflict, and what
    `folder_to_be` does."""
    path = folder_to_be(text, expected=expected, hint=hint, code=code)
    try:
        is_store = any((path / name).is_dir() for name in (COMMITS, STEPS, REJECTED, OWNER))
        is_taken = path.exists() and not is_store and any(path.iterdir())
    except OSError as error:
        raise refusal(path, "look into it", error) from error
    if is_taken:
        got = "a folder with other files"
        raise Conflict(f"option --to {text}: expected {expected}, got {got}", hint=hint, code=code)
    return path


def done_before(
    batches: Batching, store: SavesTo, *, verb: Literal["import", "reshard"], job: bytes, step: Step, is_dry: bool
) -> Made | None:
    """What an earlier call of the same command has committed, though it may not have come to its end; None where all is
    to be done. `job` is what names the record. Raises Conflict where something else has the step, and with --anew also
    where an earlier call has."""
    if batches.anew:
        check_free(store, step)
        return None
    standing = finished(store, step, verb=verb, job=job)
    if standing is None:
        return None
    if not is_dry:
        batches.drop_record(verb, job)
    return Made(standing.write_id, is_kept=True)


def write_recorded(
    batches: Batching,
    store: SavesTo,
    url: str,
    writing: Writing,
    *,
    verb: Literal["import", "reshard"],
    job: Callable[[str], bytes],
    open_work: Callable[[bytes], Work] | None = None,
    worker: str | None = None,
    run: str,
    step: Step,
    attempt: Attempt = FIRST,
    check: Callable[[], None] = lambda: None,
) -> Made:
    """Write and commit a checkpoint in batches, unless another call of the same command has done so meanwhile. While it
    goes on, nobody clears what it has written in a folder; what is recorded stays when it fails. `job` gives the job
    with a write id, or, with an empty one, what names its record. `check` is called when all is written, and may raise:
    then nothing is committed. Raises Conflict where something else has taken the step, and with --anew also where
    another call has."""
    fresh = new_write(verb, job(""))
    with (
        nullcontext() if is_s3(url) else importing(Path(url)),
        batches.record(verb, job(""), num_bytes=writing.num_bytes, note=fresh) as record,
    ):
        recorded_id = record.note
        write_id = require_written(store, step, writing, record, fresh)
        if write_id != recorded_id:
            batches.console.note("what that call wrote is gone from the target: all batches are done again")

        def do(progress: Callable[[int, int], None]) -> CommitRecord:
            executor = batches.executor(open_work, worker=worker)
            write = write_in_batches(executor, job(write_id), writing, record, progress=progress)

            def write_and_check(uploads: ObjectUploads) -> Iterator[Sequence[Written]]:
                yield from write(uploads)
                check()

            return write_checkpoint(
                store,
                Candidate(run=run, step=step, write_id=write_id, attempt=attempt, committed_us=time.time_ns() // 1000),
                writing.layout,
                write_and_check,
                keeps_unfinished=record.is_kept,
            )

        try:
            watched(batches.console, f"{verb}ing checkpoint/{step}", do)
        except Conflict as error:
            standing = _made_meanwhile(batches, store, step, verb=verb, job=job(""), error=error)
            with suppress(BehemothError):  # of no use any more, and `ckpt gc` finds it
                discard_write(store, step, write_id)
            return Made(standing, is_kept=True)
    return Made(write_id, is_kept=False)


def _made_meanwhile(
    batches: Batching, store: SavesTo, step: Step, *, verb: Literal["import", "reshard"], job: bytes, error: Conflict
) -> WriteId:
    """The write of another call of the same command that was faster. Raises `error` when it is of something else, and
    Conflict, which names it, when another write has the step."""
    if error.code not in (TAKEN, COMMIT_TAKEN):
        raise error
    standing = check_free(store, step) if batches.anew else finished(store, step, verb=verb, job=job)
    if standing is None:
        raise error
    batches.console.note(f"another call of the same command has {verb}ed checkpoint/{step} meanwhile")
    return standing.write_id
