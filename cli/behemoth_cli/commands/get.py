"""`behemoth get`: one row each."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth_cli.commands.candidates import kinds, output_option, run_names
from behemoth_cli.context import (
    Context,
    chosen_format,
    find_checkpoints,
    find_run,
    look_at,
    look_or_trouble,
    run_directories,
)
from behemoth_cli.errors import choose
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Format
from behemoth_cli.out.table import Listing
from behemoth_cli.views.status import node_listing, run_listing

TYPES = {
    "runs": "runs",
    "run": "runs",
    "checkpoints": "checkpoints",
    "checkpoint": "checkpoints",
    "ckpt": "checkpoints",
    "nodes": "nodes",
    "node": "nodes",
    "no": "nodes",
}
"""What people write -> what they mean."""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def get(
    ctx: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="TYPE", help="runs, checkpoints or nodes.", show_default=False, autocompletion=kinds(TYPES)
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A name under ./runs, run/NAME, or a run directory.", autocompletion=run_names
        ),
    ] = None,
    output: Annotated[str, output_option("wide", "json", "yaml", "name")] = "",
) -> int:
    """One row each: runs under ./runs, checkpoints or nodes of a run.

    A run directory that is damaged has a row too; the code is 3 then.
    """
    form = chosen_format(output, "wide", "json", "yaml", "name")
    choose(kind, TYPES, name="type")
    context: Context = ctx.obj
    match TYPES[kind]:
        case "runs":
            return _show_runs(name, context, form)
        case "nodes":
            shown = _nodes(name, context)
        case "checkpoints":
            shown = _checkpoints(name, context)
        case other:
            raise Invalid(f"type: expected one of {', '.join(TYPES)}, got {other!r}", code="unknown-name")
    context.console.show(shown, form)
    return Exit.OK


def _show_runs(name: str | None, context: Context, form: Format) -> Exit:
    """All of them, or the one that is named, whose damage is then an error with a hint."""
    if name is not None:
        looks = [look_at(find_run(name, context.console))]
    else:
        looks = [look_or_trouble(directory) for directory in run_directories()]
    context.console.show(run_listing(looks, now_us=time.time_ns() // 1000), form)
    troubled = [look for look in looks if look.trouble is not None]
    for look in troubled:
        if look.trouble is not None and form in ("", "name"):  # the other formats have a place for it
            context.console.note(f"warning: {look.path}: {look.trouble.state}: {look.trouble.message}")
    return Exit.UNHEALTHY if troubled else Exit.OK


def _nodes(name: str | None, context: Context) -> Listing:
    return node_listing(look_at(find_run(name, context.console)))


def _checkpoints(name: str | None, context: Context) -> Listing:
    from behemoth_cli.commands.ckpt import listing_of

    place = name if name is not None else str(find_run(None, context.console).path)
    return listing_of(find_checkpoints(place))
