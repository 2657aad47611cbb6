"""`behemoth ckpt`: looks at checkpoints. Nothing here writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from behemoth.base.errors import BehemothError, Corrupt, Invalid, NotFound
from behemoth.checkpoint.commit_log import BadCommit, commits, read_record
from behemoth.checkpoint.paths import REJECTED
from behemoth.checkpoint.reader import digest, open_commit
from behemoth.checkpoint.verify import Report, verify, verify_owner
from behemoth.ports import ObjectInfo, ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option, run_names
from behemoth_cli.context import Checkpoints, Context, chosen_format, find_checkpoints
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Console
from behemoth_cli.out.progress import Progress
from behemoth_cli.out.table import Listing
from behemoth_cli.views.checkpoints import Found, State, checkpoint_listing, checkpoint_page, verify_page
from behemoth_cli.views.figures import percent, rate, seconds, size

_MAX_MARKER_BYTES = 1 << 16
_FOREIGN = "not a file of behemoth: a commit is called commits/<nine digits>.json"

app = typer.Typer(rich_markup_mode=None, add_completion=False)

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


@app.callback()
def ckpt() -> None:
    """List, show and verify checkpoints."""


@app.command("list")
def list_checkpoints(
    ctx: typer.Context,
    where: Where,
    output: Annotated[str, output_option("wide", "json", "yaml", "name")] = "",
) -> None:
    """One row for each checkpoint. Reads records only: `ok` does not mean that every byte was looked at."""
    form = chosen_format(output, "wide", "json", "yaml", "name")
    context: Context = ctx.obj
    context.console.show(listing_of(find_checkpoints(where)), form)


@app.command()
def show(
    ctx: typer.Context,
    where: Where,
    step: Step = None,
    with_digest: Annotated[
        bool, typer.Option("--digest", help="Read every array and compute the digest of the state.")
    ] = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Where a checkpoint comes from, and its arrays; the newest one without --step."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store:
        opened = open_commit(store, _intact(store, place, step))
        text = f"sha256:{digest(store, opened)}" if with_digest else None
    context.console.show(checkpoint_page(opened, text), form)


@app.command("verify")
def verify_checkpoints(
    ctx: typer.Context,
    where: Where,
    step: Step = None,
    fast: Annotated[bool, typer.Option("--fast", help="Check metadata and sizes; do not read the arrays.")] = False,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Threads that read and check.")] = 4,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> int:
    """Read checkpoints back, every byte; all of them without --step.

    Names tensor, chunk and file of each damage, and files that have no business there, and ends with code 3 then.
    Repairs nothing.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store:
        of_store = verify_owner(store)
        # Damage is told even where nothing was committed.
        chosen = [] if of_store and step is None and not commits(store) else _chosen(store, place, step)
        checked = [(_found(store, one), _verified(store, one, context.console, threads, not fast)) for one in chosen]
        reports = [(found, report) for found, report in checked if report.is_intact or _still_there(store, found)]
        for found, _ in checked:
            if not any(found is kept for kept, _ in reports):
                context.console.note(f"checkpoint/{found.step} was deleted while it was read: left out")
    context.console.show(verify_page(reports, of_store), form)
    for found, _ in reports:
        if found.state == "foreign":
            context.console.note(
                f"hint: remove {place.url}/{found.key}, or move it elsewhere, if nobody needs it there"
            )
    return Exit.UNHEALTHY if of_store or not all(report.is_intact for _, report in reports) else Exit.OK


def _still_there(store: ObjectStore, found: Found) -> bool:
    """A live run's retention may delete what is being verified; that is no damage."""
    return found.state != "ok" or any(
        isinstance(one, CommitRef) and (one.step, one.write_id) == (found.step, found.write_id)
        for one in commits(store)
    )


def listing_of(place: Checkpoints) -> Listing:
    """All checkpoints of a place, rejected ones among them."""
    with closing(open_store(place.url)) as store:
        found = [_found(store, one) for one in commits(store)] + list(_rejected(store))
    found.sort(key=lambda one: (-1 if one.step is None else one.step, one.state == "ok"))
    return checkpoint_listing(found, now_us=time.time_ns() // 1000)


def _verified(
    store: ObjectStore, commit: CommitRef | BadCommit, console: Console, threads: int, is_deep: bool
) -> Report:
    progress = Progress(console, partial(_progress_text, commit.step))
    try:
        return verify(store, commit, threads=threads, deep=is_deep, progress=progress.update)
    finally:
        progress.close()


def _progress_text(step: int | None, done: int, total: int, elapsed_s: float) -> str:
    pace = done / elapsed_s
    left = seconds((total - done) / pace) if pace else "-"
    share = percent(done, total)
    return f"verifying checkpoint/{step}: {size(done)} of {size(total)} ({share}), {rate(pace)}, ETA {left}"


def _intact(store: ObjectStore, place: Checkpoints, step: int | None) -> CommitRef:
    """The newest intact one, or that of `step`. Raises NotFound, or the error of a damaged record."""
    one = [commit for commit in _chosen(store, place, step) if step is not None or isinstance(commit, CommitRef)]
    if not one:
        raise Corrupt(
            f"{_name(place)}: expected an intact checkpoint, got damaged ones only",
            hint=f"`behemoth ckpt verify {_name(place)}` names the damage",
            code="checkpoints-damaged",
        )
    newest = one[-1]
    if isinstance(newest, BadCommit):
        raise newest.error
    return newest


def _chosen(store: ObjectStore, place: Checkpoints, step: int | None) -> list[CommitRef | BadCommit]:
    """All checkpoints, or that of `step`. Raises NotFound when there is none."""
    all_commits = commits(store)
    chosen = [one for one in all_commits if step is None or one.step == step]
    if chosen:
        return chosen
    steps = ", ".join([str(one.step) for one in all_commits if one.step is not None][-8:])
    wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
    raise NotFound(
        f"{_name(place)}: expected {wanted}, got none",
        hint=f"there are checkpoints of step {steps}" if steps else "nothing was committed there yet",
        code="checkpoint-not-found",
    )


def _name(place: Checkpoints) -> str:
    return f"run/{place.run}" if place.run else place.url


def _found(store: ObjectStore, one: CommitRef | BadCommit) -> Found:
    if isinstance(one, BadCommit):
        if one.step is None:
            return Found(step=None, write_id="", state="foreign", record=None, reason=_FOREIGN, key=one.key)
        state = _bad_state(one.error)
        return Found(step=one.step, write_id="", state=state, record=None, reason=one.error.message)
    try:
        record = read_record(store, one)
    except BehemothError as error:
        return Found(step=one.step, write_id=one.write_id, state=_bad_state(error), record=None, reason=error.message)
    return Found(step=one.step, write_id=one.write_id, state="ok", record=record, reason="")


def _bad_state(error: BehemothError) -> State:
    return "newer" if isinstance(error, Invalid) else "damaged"


def _rejected(store: ObjectStore) -> Iterator[Found]:
    for info in store.list(REJECTED):
        marker = _marker(store, info)
        step, _, write_id = info.key.removeprefix(f"{REJECTED}/").removesuffix(".json").partition("-")
        yield Found(
            step=int(step) if step.isdigit() else None,
            write_id=write_id,
            state="rejected",
            record=None,
            reason=str(marker.get("reason", "")),
        )


def _marker(store: ObjectStore, info: ObjectInfo) -> dict[str, object]:
    """What a rejection says; its name alone is what counts, so rubbish in it says nothing."""
    data = bytearray(min(info.size_bytes, _MAX_MARKER_BYTES))
    try:
        store.read_into(info.key, offset_bytes=0, into=data)
        found = json.loads(data)
    except (BehemothError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
