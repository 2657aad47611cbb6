"""`behemoth ckpt rehearse`: a restore on a given mesh, thrown away and timed."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.rehearsal import Rehearsal, rehearse
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh, parse_mesh
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.rank_list import parse_ranks
from behemoth_cli.commands.selection import Step, Threads, Where, opened, require_still_there, standing
from behemoth_cli.context import Context, chosen_format, find_checkpoints
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Console
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.figures import work
from behemoth_cli.views.rehearsal import rehearsal_page


def rehearse_restore(
    ctx: typer.Context,
    where: Where,
    step: Step = None,
    mesh: Annotated[
        str, typer.Option("--mesh", metavar="AXES", help="Mesh that restores, such as tp=4,dp=2; else its own.")
    ] = "",
    ranks: Annotated[str, typer.Option("--ranks", metavar="LIST", help="Ranks to restore, as 0-3,7; else all.")] = "",
    threads: Threads = 4,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> Exit:
    """Restore a checkpoint into memory that is thrown away, rank after rank, and say what that took.

    Reads what each of the ranks would read and checks it alike, the newest checkpoint without --step. Ends with code 3
    when a rank could not be restored.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    wanted = parse_ranks(ranks, option="--ranks")
    other = parse_mesh(mesh, name="option --mesh") if mesh else None
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store:
        began_s = time.monotonic()
        commit = opened(store, standing(store, place, step))
        open_s = time.monotonic() - began_s
        on = other or commit.record.mesh
        found = _rehearsed(context.console, store, commit, on, _ranks(wanted, on), threads)
    context.console.show(rehearsal_page(commit.record, on, found, open_s=open_s), form)
    return Exit.OK if found.is_intact else Exit.UNHEALTHY


def _ranks(wanted: frozenset[int] | None, mesh: Mesh) -> list[Rank]:
    ranks = range(mesh.num_ranks) if wanted is None else sorted(wanted)
    if ranks[-1] >= mesh.num_ranks:
        message = f"option --ranks: expected ranks below {mesh.num_ranks}, the world of the mesh, got {ranks[-1]}"
        raise Invalid(message, code="rank-list")
    return [Rank(rank) for rank in ranks]


def _rehearsed(
    console: Console, store: ObjectStore, commit: Commit, mesh: Mesh, ranks: list[Rank], threads: int
) -> Rehearsal:
    """Restore rank after rank. Raises NotFound when a live run's retention deleted the checkpoint meanwhile."""
    step = commit.record.step
    progress = Progress(console, partial(work, f"restoring checkpoint/{step}"))
    try:
        layout = on_mesh(commit.layout, mesh)
        found = rehearse(store, commit, layout, ranks, threads=threads, progress=progress.update)
    finally:
        progress.close()
    if not found.is_intact:
        require_still_there(store, commit.record.ref)
    return found
