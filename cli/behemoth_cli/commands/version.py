"""`behemoth version`."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from behemoth.base.release import installed
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.context import Context, chosen_format
from behemoth_cli.out.table import Page, Section

_BESIDE = ("ray", "zarr", "numpy", "torch")
"""Packages whose version matters in a report."""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def version(ctx: typer.Context, output: Annotated[str, output_option("json", "yaml")] = "") -> None:
    """Versions of behemoth and of what it stands on."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    found = {name: installed(name) for name in _BESIDE}
    body = {"behemoth": installed("behemoth"), "python": platform.python_version(), "packages": found}
    pairs = [("python", platform.python_version()), *((name, text or "not installed") for name, text in found.items())]
    page = Page(
        kind="Version",
        sections=(Section(lines=(f"behemoth {body['behemoth']}",)), Section(pairs=tuple(pairs))),
        body=body,
    )
    context.console.show(page, form)
