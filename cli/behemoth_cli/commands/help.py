"""`behemoth help TOPIC`: what no option's help can tell."""

from __future__ import annotations

from typing import Annotated

import typer

from behemoth_cli.commands.candidates import one_of, output_option
from behemoth_cli.context import Context, chosen_format
from behemoth_cli.errors import choose
from behemoth_cli.exits import MEANINGS
from behemoth_cli.out.table import Column, Listing

TOPICS = ("exit-codes",)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("help")
def show_help(
    ctx: typer.Context,
    topic: Annotated[
        str, typer.Argument(metavar="[TOPIC]", help=f"One of {', '.join(TOPICS)}.", autocompletion=one_of(*TOPICS))
    ] = "",
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Topics beyond the options: exit-codes."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    if not topic:
        assert ctx.parent is not None
        context.console.write(ctx.parent.get_help() + "\n")
        return
    choose(topic, TOPICS, name="topic")
    context.console.show(exit_codes(), form)


def exit_codes() -> Listing:
    """What each exit code means."""
    return Listing(
        kind="ExitCodeList",
        columns=(Column(name="code", align="right"), Column(name="meaning")),
        rows=tuple((str(int(code)), meaning) for code, meaning in MEANINGS.items()),
        items=tuple({"code": int(code), "meaning": meaning} for code, meaning in MEANINGS.items()),
    )
