"""`behemoth ckpt drain`: copies one checkpoint to another store, down to a safer one or back from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from behemoth.app.import_lock import importing
from behemoth.app.run_directory import RunDirectory
from behemoth.app.store_lock import leading
from behemoth.base.errors import BehemothError, Conflict
from behemoth.checkpoint.commit_log import read_record, reject
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.copy_plan import CopyPlan, has_commit, plan_copy, refuse_going
from behemoth.checkpoint.draining import Copied, copy_checkpoint
from behemoth.checkpoint.owner import Owner, read_owner, refuse_other, take
from behemoth.checkpoint.pacing import Pacer
from behemoth.ports import ObjectStore, SavesTo
from behemoth.storage.open import is_s3, open_store, path_of
from behemoth.storage.probe_uploads import probe_bucket
from behemoth_cli.commands.candidates import output_option, run_names
from behemoth_cli.commands.interop_options import DryRun, watched
from behemoth_cli.commands.owners import in_the_way
from behemoth_cli.commands.rates import rate_of, stopped_by_interrupt
from behemoth_cli.commands.selection import Step, Threads, intact, require_still_there
from behemoth_cli.commands.writing import require_apart, require_one_meaning, store_to_be
from behemoth_cli.context import PREFIX, Context, chosen_format, find_checkpoints
from behemoth_cli.out.console import Console
from behemoth_cli.views.care import copy_page, copy_plan_page

_TARGET = "a run, a checkpoint store, or a folder that is empty or not there"
_TARGET_HINT = "name run/NAME, or a folder or s3:// prefix that holds checkpoints or nothing"


def drain(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Where the checkpoint is: run/NAME, a run directory, or the path or URL of a store.",
            show_default=False,
            autocompletion=run_names,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="Where it shall be too: likewise, or a folder or prefix with nothing in it.",
            show_default=False,
            autocompletion=run_names,
        ),
    ],
    step: Step = None,
    rate: Annotated[str, typer.Option("--rate", metavar="SIZE", help="Bytes to read in a second at most.")] = "",
    threads: Threads = 4,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Copy a checkpoint to another store, the newest one without --step: the same bytes, each proven on its way.

    The target becomes the store of the run that the source belongs to; one of another run, or of a run that is alive,
    is refused. May be killed at any time: the same command goes on, and keeps what is there whole. --dry-run tells the
    objects and bytes, and refuses what the command would refuse.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    bytes_per_s = rate_of(rate, without="there is no limit") if rate else None
    place, target_url = find_checkpoints(source), _target_url(to)
    require_apart(place.url, target_url, code="drain-same")
    with closing(open_store(place.url)) as given, closing(open_store(target_url)) as store:
        record = read_record(given, intact(given, place, step, note=context.console.note))
        if is_dry:
            plan = _planned(context.console, given, store, record, target_url)
            least_s = plan.num_bytes / bytes_per_s if bytes_per_s else None
            page = copy_plan_page(plan, source=given.root, target=store.root, least_seconds=least_s)
            context.console.show(page, form)
            return
        began_s = time.monotonic()
        with _held(given, store, record, target_url) as is_alone, stopped_by_interrupt() as stop:
            pace = _pace(bytes_per_s, stop)
            copy = partial(copy_checkpoint, given, store, record.ref, threads=threads, pace=pace, is_alone=is_alone)
            copied = _copied(context.console, given, record, copy)
            if copied.num_bytes + copied.found_bytes:
                _take_back_if_taken(given, store, record, target_url)
    seconds = time.monotonic() - began_s
    context.console.show(copy_page(copied, source=given.root, target=store.root, seconds_taken=seconds), form)


def _pace(bytes_per_s: int | None, stop: threading.Event) -> Callable[[int], None]:
    pacer = None if bytes_per_s is None else Pacer(bytes_per_s=bytes_per_s, stop=stop)
    return lambda num_bytes: None if pacer is None else pacer.take(num_bytes, what="copy")


def _target_url(text: str) -> str:
    if is_s3(text):
        return text
    if text.startswith(PREFIX) or ("://" not in text and RunDirectory(Path(text)).identity() is not None):
        return find_checkpoints(text).url
    require_one_meaning(text, hint=f"write run/{text} or ./{text}")
    return str(store_to_be(text, expected=_TARGET, hint=_TARGET_HINT, code="drain-folder"))


def _planned(
    console: Console, given: ObjectStore, store: ObjectStore, record: CommitRecord, target_url: str
) -> CopyPlan:
    """The plan of --dry-run. Takes no lock and writes nothing. A live run on the target is only reported: it may be
    over when the copy is made."""
    owner = _standing_owner(given, store, target_url)
    reason = in_the_way(owner, _candidates(target_url), url=target_url) if owner is not None else ""
    if reason:
        console.note(f"{reason}: the copy would be refused")
    plan = plan_copy(given, store, record.ref)
    if owner is None and not plan.is_there:
        refuse_going(store, record)
    return plan


def _standing_owner(given: ObjectStore, store: ObjectStore, url: str) -> Owner | None:
    """What says whose the target is, if anything does. Raises Conflict for the store of another run than the
    source's."""
    owner = read_owner(given)
    return refuse_other(store, owner.run_uid if owner is not None else None, url=url)


def _candidates(url: str) -> tuple[Path, ...]:
    """Paths at which the run directory of a store may be, besides the one in the store."""
    return () if is_s3(url) else (Path(path_of(url)).parent,)


@contextmanager
def _held(given: ObjectStore, store: SavesTo, record: CommitRecord, url: str) -> Iterator[bool]:
    """While this lasts nobody cleans up what is written, and the target is the source's run's. Yields whether nobody
    deletes checkpoints there either. A bucket's server is tried out before the first byte. Raises Conflict for the
    store of another run, or of one that is alive, and where the copy could not be published: a store that gets nothing
    stays whose it was."""
    owner, standing = read_owner(given), _standing_owner(given, store, url)
    has_commit(store, record)
    probe_bucket(store, url=url)
    with ExitStack() as stack:
        if standing is not None:
            stack.enter_context(leading(store, url=url, candidates=_candidates(url)))
        elif not is_s3(url):
            stack.enter_context(importing(Path(path_of(url))))
        if standing is None and owner is not None:
            take(store, owner, url=url)
        yield standing is not None


def _take_back_if_taken(given: ObjectStore, store: ObjectStore, record: CommitRecord, url: str) -> None:
    """A run that takes a store first says so, then reads which commits there are, and removes what belongs to none: of
    a copy that is published after that, objects may be gone. Raises Conflict, which names the run."""
    try:
        _standing_owner(given, store, url)
    except Conflict:
        reject(store, record.ref, "a run took the store while it was copied there")
        raise


def _copied(console: Console, given: ObjectStore, record: CommitRecord, copy: Callable[..., Copied]) -> Copied:
    """A live run's retention may delete what is being read; that is no damage."""
    try:
        return watched(console, f"copying checkpoint/{record.step}", lambda progress: copy(progress=progress))
    except BehemothError:
        require_still_there(given, record.ref)
        raise
