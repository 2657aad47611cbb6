"""`behemoth ckpt diff`: what changed between two checkpoints."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated

import typer

from behemoth.checkpoint import diff as comparison
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option, run_names
from behemoth_cli.commands.selection import Threads, Where, opened, standing, unless_deleted
from behemoth_cli.context import Context, chosen_format, find_checkpoints
from behemoth_cli.exits import Exit
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.difference import diff_page
from behemoth_cli.views.figures import work


def diff(
    ctx: typer.Context,
    where: Where,
    first: Annotated[int, typer.Argument(metavar="A", min=0, help="Step of a checkpoint.", show_default=False)],
    second: Annotated[int, typer.Argument(metavar="B", min=0, help="Step of another one.", show_default=False)],
    other: Annotated[
        str,
        typer.Option("--in", metavar="WHERE", help="Where B lies, if not in the same place.", autocompletion=run_names),
    ] = "",
    threads: Threads = 4,
    output: Annotated[str, output_option("wide", "json", "yaml", help="wide lists arrays that are the same too.")] = "",
) -> int:
    """Which arrays changed from the checkpoint of step A to that of step B, and by how much.

    Reads only chunks whose CRCs differ, where both checkpoints are cut into the same chunks. Ends with code 3 when
    anything differs.
    """
    form = chosen_format(output, "wide", "json", "yaml")
    context: Context = ctx.obj
    places = find_checkpoints(where), find_checkpoints(other or where)
    progress = Progress(context.console, partial(work, f"comparing checkpoint/{first} and checkpoint/{second}"))
    with ExitStack() as stack:
        stack.callback(progress.close)
        stores = [stack.enter_context(closing(open_store(place.url))) for place in places]
        refs = [
            standing(store, place, step) for store, place, step in zip(stores, places, (first, second), strict=True)
        ]
        one, two = (
            comparison.Side(store=store, commit=opened(store, ref)) for store, ref in zip(stores, refs, strict=True)
        )
        with unless_deleted(stores[0], refs[0]), unless_deleted(stores[1], refs[1]):
            found = comparison.diff(one, two, threads=threads, progress=progress.update)
    page = diff_page(found, one.commit.record, two.commit.record, is_full=form == "wide")
    context.console.show(page, form)
    return Exit.OK if all(each.how == "same" for each in found) else Exit.UNHEALTHY
