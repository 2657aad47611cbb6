"""`behemoth get`: one row each."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth_cli.context import (
    Context,
    chosen_format,
    find_checkpoints,
    find_run,
    look_at,
    run_directories,
)
from behemoth_cli.errors import choose
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
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="runs, checkpoints or nodes.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A name under ./runs, run/NAME, or a run directory.")
    ] = None,
    output: Annotated[str, typer.Option("-o", metavar="wide|json|yaml|name")] = "",
) -> None:
    """One row each: runs under ./runs, checkpoints or nodes of a run."""
    form = chosen_format(output, "wide", "json", "yaml", "name")
    choose(kind, TYPES, name="type")
    context: Context = ctx.obj
    match TYPES[kind]:
        case "runs":
            shown = _runs(name, context)
        case "nodes":
            shown = _nodes(name, context)
        case "checkpoints":
            shown = _checkpoints(name, context)
        case other:
            raise Invalid(f"type: expected one of {', '.join(TYPES)}, got {other!r}", code="unknown-name")
    context.console.show(shown, form)


def _runs(name: str | None, context: Context) -> Listing:
    found = [find_run(name, context.console)] if name is not None else run_directories()
    return run_listing([look_at(directory) for directory in found], now_us=time.time_ns() // 1000)


def _nodes(name: str | None, context: Context) -> Listing:
    return node_listing(look_at(find_run(name, context.console)))


def _checkpoints(name: str | None, context: Context) -> Listing:
    from behemoth_cli.commands.ckpt import listing_of

    place = name if name is not None else str(find_run(None, context.console).path)
    return listing_of(find_checkpoints(place))
