"""`behemoth status`: folds the journal of a run, whoever runs it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from behemoth_cli.commands.candidates import output_option, run_names
from behemoth_cli.context import Context, chosen_format, find_run, look_at
from behemoth_cli.views.status import status_page

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A name under ./runs, run/NAME, or a run directory.", autocompletion=run_names
        ),
    ] = None,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """One screen about a run: progress, nodes, where the time went, checkpoints, what happened lately."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    look = look_at(find_run(run, context.console))
    context.console.show(status_page(look, now_us=time.time_ns() // 1000), form)
