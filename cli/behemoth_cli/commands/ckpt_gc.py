"""`behemoth ckpt gc`: what retention gives up, told first, deleted only with --execute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from behemoth.app.clean_store import plan_clean, unsure_in
from behemoth.app.import_lock import clearing
from behemoth.app.run_directory import RunDirectory
from behemoth.app.store_lock import directory_of, leading
from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import WriteId
from behemoth.checkpoint.gc import execute
from behemoth.checkpoint.owner import OWNED, Owner, read_owner
from behemoth.policy.retention import Retention
from behemoth.ports import ObjectStore, UploadsParts
from behemoth.storage.open import is_s3, open_store, path_of
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.owners import in_the_way
from behemoth_cli.commands.selection import Where, name_of
from behemoth_cli.context import Checkpoints, Context, chosen_format, find_checkpoints, read_run
from behemoth_cli.out.console import Console
from behemoth_cli.views.care import clean_page


def gc(
    ctx: typer.Context,
    where: Where,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", metavar="N", min=2, help="Keep the newest N checkpoints.")
    ] = None,
    every_steps: Annotated[
        int | None, typer.Option("--every-steps", metavar="K", min=1, help="Keep those at multiples of K steps.")
    ] = None,
    hourly: Annotated[
        int | None,
        typer.Option("--hourly", metavar="H", min=0, help="Keep the newest of each of the last H hours that have one."),
    ] = None,
    daily: Annotated[
        int | None,
        typer.Option("--daily", metavar="D", min=0, help="Keep the newest of each of the last D days that have one."),
    ] = None,
    takes_unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="In a store that no run owns: also what imports left that were cut off."),
    ] = False,
    does_execute: Annotated[bool, typer.Option("--execute", help="Delete; without it only the plan is told.")] = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Tell which checkpoints may go, and why the others stay; delete them with --execute.

    What an option does not say is as in the run's file, where WHERE names a run. Deletes only while no run is alive on
    the store; then also what writes left that were never committed. Never the newest two, never a pinned one.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    retention = _retention(place, keep_last, every_steps, hourly, daily)
    context.console.note(f"store {place.url}")
    with closing(open_store(place.url)) as store:
        owner = _require_owner(store, place)
        with _held(store, place, owner, context.console, does_execute, takes_unfinished) as is_alone:
            unsure = _unsure(store, place, owner) if is_alone else _nothing
            plan = plan_clean(store, retention, takes_rubbish=is_alone, unsure=unsure)
            if does_execute and owner is None:
                _require_nobodys(store, place)
            spared = execute(store, plan.gc) if does_execute else frozenset()
    now_us = time.time_ns() // 1000
    context.console.show(clean_page(plan, is_executed=does_execute, spared=spared, now_us=now_us), form)
    if not does_execute and (plan.gc.objects or plan.gc.commits or plan.gc.uploads):
        context.console.note("hint: nothing was deleted; --execute does it")


def _retention(
    place: Checkpoints, keep_last: int | None, every_steps: int | None, hourly: int | None, daily: int | None
) -> Retention:
    """An option beats the run's file. Raises Invalid where neither says how many are kept."""
    of_file = None if place.directory is None else read_run(RunDirectory(place.directory).document).checkpoint.retention
    if keep_last is None and of_file is None:
        raise Invalid(
            f"{name_of(place)}: expected to be told how many checkpoints are kept, got no run and no --keep-last",
            hint="name the run (run/NAME or its directory), or say --keep-last N",
            code="retention-missing",
        )
    of_run = {} if of_file is None else asdict(of_file)
    asked = {"keep_last": keep_last, "every_steps": every_steps, "hourly": hourly, "daily": daily}
    return Retention(**{**of_run, **{name: number for name, number in asked.items() if number is not None}})


def _require_owner(store: ObjectStore, place: Checkpoints) -> Owner | None:
    """The owner of the store. Raises Conflict where it is not the named run, whose retention does not apply there
    then."""
    identity = None if place.directory is None else RunDirectory(place.directory).identity()
    owner = read_owner(store)
    if identity is not None and owner is not None and owner.run_uid != identity.run_uid:
        raise Conflict(
            f"checkpoint store {place.url}: expected it to be that of the run in {place.directory}, got that of "
            f"run/{owner.name} in {owner.directory}",
            hint=f"it was taken over: name {owner.directory}",
            code=OWNED,
        )
    return owner


def _require_nobodys(store: ObjectStore, place: Checkpoints) -> None:
    """Raises Conflict when the store has got an owner. Checked after the plan was made: nothing of a run that begins
    later is in the plan."""
    owner = read_owner(store)
    if owner is not None:
        raise Conflict(
            f"checkpoint store {place.url}: expected it to belong to no run, got it taken by run/{owner.name} "
            "meanwhile",
            hint=f"nothing was deleted; that run in {owner.directory} cleans up itself",
            code=OWNED,
        )


def _unsure(store: ObjectStore, place: Checkpoints, owner: Owner | None) -> Callable[[WriteId], bool]:
    """Tells writes whose commit may still arrive, which is possible in S3 only. Call it while no run is alive there."""
    if not isinstance(store, UploadsParts):
        return _nothing
    return unsure_in(place.url, None if owner is None else directory_of(owner, _candidates(place), root=place.url))


def _nothing(_write_id: WriteId) -> bool:
    return False


def _candidates(place: Checkpoints) -> list[Path]:
    """Paths at which the directory of the store's run may be, besides the one in the store."""
    own = [place.directory] if place.directory is not None else []
    return own if is_s3(place.url) else [*own, Path(path_of(place.url)).parent]


@contextmanager
def _held(
    store: ObjectStore,
    place: Checkpoints,
    owner: Owner | None,
    console: Console,
    does_execute: bool,
    takes_unfinished: bool,
) -> Iterator[bool]:
    """Yields whether nobody can write there. To delete, the run is locked out; a plan only checks whether one is
    alive."""
    candidates = _candidates(place)
    if owner is None:
        with _held_of_nobody(place, console, takes_unfinished):
            yield takes_unfinished
        return
    if takes_unfinished:
        raise Invalid(
            f"option --unfinished: expected a store that no run owns, got that of run/{owner.name}",
            hint="leave it out: what unfinished writes left in a run's store goes anyway",
            code="option-without-effect",
        )
    if does_execute:
        with leading(store, url=place.url, candidates=candidates) as is_alone:
            yield is_alone
        return
    reason = in_the_way(owner, candidates, url=place.url)
    if reason:
        console.note(f"{reason}: --execute would be refused")
    yield not reason


@contextmanager
def _held_of_nobody(place: Checkpoints, console: Console, takes_unfinished: bool) -> Iterator[None]:
    """As `_held`, for a store without an owner: what is not committed there may be an import under way, so the operator
    must say that it may be deleted."""
    if takes_unfinished and is_s3(place.url):
        console.note("in a bucket nobody can tell whether an import is under way: --unfinished says that none is")
        yield
        return
    if takes_unfinished:
        with clearing(Path(path_of(place.url))):
            yield
        return
    console.note("the store belongs to no run: what unfinished writes left there is not touched")
    console.note("hint: --unfinished takes what imports left that were cut off")
    yield
