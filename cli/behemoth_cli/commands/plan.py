"""`behemoth plan`: offline, and only what follows from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from behemoth.spec.model import Inventory, ModelFile, NamedModel, decode_inventory, named_inventory
from behemoth.spec.run import TrainingRun, require_fit
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.context import Context, chosen_format, read_file, read_run
from behemoth_cli.views.plan import plan_page

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def plan(
    ctx: typer.Context,
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The run file.")],
    output: Annotated[str, output_option("wide", "json", "yaml", help="wide and documents have one row a rank.")] = "",
) -> None:
    """What a run file asks for: nodes, ranks, and bytes where the model's tensors are known. Starts nothing."""
    form = chosen_format(output, "wide", "json", "yaml")
    context: Context = ctx.obj
    run = read_run(file)
    context.console.show(plan_page(run, inventory_of(run), is_full=bool(form)), form)


def inventory_of(run: TrainingRun) -> Inventory | None:
    """The model's tensors as far as they are known without running it. Raises Invalid when the mesh does not fit."""
    match run.model:
        case None:
            return None
        case NamedModel(ref=ref):
            return named_inventory(ref)
        case ModelFile(inventory=path):
            inventory = decode_inventory(read_file(Path(path)), source=path)
            require_fit(run, inventory)
            return inventory
