"""`behemoth explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from behemoth.spec.schema import explain, walk
from behemoth_cli.commands.candidates import field_paths, output_option
from behemoth_cli.context import Context, chosen_format
from behemoth_cli.views.fields import field_listing, field_page

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("explain")
def explain_field(
    ctx: typer.Context,
    field: Annotated[
        str, typer.Argument(metavar="[FIELD]", help="Path such as spec.mesh.ep.", autocompletion=field_paths)
    ] = "",
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="All fields below it, one row each.")] = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """What a field of the run file means and takes; without FIELD, the whole file."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    doc = explain(field)
    context.console.show(field_listing(list(walk(doc))[1:] or [doc]) if recursive else field_page(doc), form)
