"""`behemoth plan`: offline, and only what follows from the file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from behemoth.app.inventory_file import read_inventory
from behemoth.base.errors import Invalid
from behemoth.base.units import parse_rate
from behemoth.spec.fit import misfits
from behemoth.spec.mesh import Mesh, parse_mesh
from behemoth.spec.model import Inventory, ModelFile, NamedModel, named_inventory
from behemoth.spec.pipeline import EVEN
from behemoth.spec.recipe import Recipe, parse_recipe
from behemoth.spec.run import TrainingRun, require_fit
from behemoth_cli.commands.candidates import one_of, output_option
from behemoth_cli.context import RUNS, Context, chosen_format, read_file, read_run
from behemoth_cli.errors import nearest
from behemoth_cli.out.console import Console
from behemoth_cli.out.progress import Done, Progress
from behemoth_cli.views.figures import seconds
from behemoth_cli.views.plan import plan_page
from behemoth_cli.views.restores import Restore

if TYPE_CHECKING:
    from behemoth.checkpoint.forecast import Forecast, Rates
    from behemoth.checkpoint.rank_bytes import RankBytes

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_TIERS = ("memory", "peer", "local_disk", "disk", "store")


RestoreMeshes = Annotated[
    list[str] | None,
    typer.Option(
        "--restore-mesh",
        metavar="AXES",
        help="Mesh that restores the save, such as tp=4,pp=8,dp=1000, with the axes of a run file and their defaults; "
        "may be repeated. The run's own when left out.",
    ),
]
RestoreRecipe = Annotated[
    str | None,
    typer.Option(
        "--restore-recipe",
        metavar="FIELDS",
        help="Recipe of the state that is restored, such as weights=bfloat16,master=none,shares=whole; fields that "
        "are left out are the run's own.",
    ),
]
Bandwidths = Annotated[
    list[str] | None,
    typer.Option(
        "--bandwidth",
        metavar="TIER=RATE",
        help="Bytes per second of a tier, such as disk=5GB/s; may be repeated. Assumed when left out: memory=7GB/s "
        "for each rank, peer=10GB/s, local_disk=2GB/s, disk=2GB/s and store=200MB/s for each node. Copies keep to the "
        "run's own peer_rate and local_disk.rate too.",
        autocompletion=one_of(*(f"{tier}=" for tier in _TIERS)),
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price",
        metavar="USD",
        min=0,
        help="Price of a million requests; 5, the list price of Amazon S3, when left out.",
    ),
]


@app.command()
def plan(
    ctx: typer.Context,
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The run file.")],
    output: Annotated[str, output_option("wide", "json", "yaml", help="wide and documents have one row a rank.")] = "",
    restore_mesh: RestoreMeshes = None,
    restore_recipe: RestoreRecipe = None,
    bandwidth: Bandwidths = None,
    price: Price = None,
) -> None:
    """What a run file asks for: nodes, ranks, bytes, and what a save costs where the model's tensors are known. Starts
    nothing."""
    form = chosen_format(output, "wide", "json", "yaml")
    context: Context = ctx.obj
    run = read_run(file)
    inventory = inventory_of(run)
    given = {
        "--restore-mesh": restore_mesh,
        "--restore-recipe": restore_recipe,
        "--bandwidth": bandwidth,
        "--price": price,
    }
    if inventory is None or not inventory.tensors:
        _refuse_idle([name for name, value in given.items() if value not in (None, [])])
        context.console.show(plan_page(run, inventory, is_full=bool(form)), form)
        return
    recipe = run.recipe
    if restore_recipe is not None:
        recipe = parse_recipe(restore_recipe, recipe, name="option --restore-recipe")
    meshes = [_mesh(text, inventory, recipe) for text in restore_mesh or []] or [run.mesh]
    rates = _kept_to(run, rates_of(bandwidth or [], price))
    save, restores = _forecasts(context.console, run, inventory, meshes, recipe, rates)
    page = plan_page(
        run,
        inventory,
        is_full=bool(form),
        held=_held(run, inventory),
        save=save,
        restores=restores,
        reads_shared=_reads_shared(run),
    )
    context.console.show(page, form)


def inventory_of(run: TrainingRun) -> Inventory | None:
    """The model's tensors as far as they are known without running it. Raises Invalid when the mesh does not fit."""
    match run.model:
        case None:
            return None
        case NamedModel(ref=ref):
            return named_inventory(ref)
        case ModelFile(inventory=path):
            inventory = read_inventory(Path(path), read_file)
            require_fit(run, inventory)
            return inventory


def rates_of(bandwidths: list[str], price: float | None) -> Rates:
    """Raises Invalid for a tier that there is none of, or that is given twice, and for what is no rate."""
    from behemoth.checkpoint.forecast import Rates

    given: dict[str, float] = {}
    for text in bandwidths:
        tier, _, rate = text.partition("=")
        if tier not in _TIERS or f"{tier}_bytes_per_s" in given:
            raise Invalid(
                f"option --bandwidth: expected each of {', '.join(_TIERS)} once with its rate, got {text!r:.80}",
                hint=nearest(tier, _TIERS) or "write it as disk=5GB/s",
                code="bandwidth",
            )
        hint = "write it as disk=5GB/s; without the option a usual rate is assumed"
        given[f"{tier}_bytes_per_s"] = parse_rate(
            rate.removesuffix("/s"), name=f"option --bandwidth {tier}", hint=hint, code="bandwidth"
        )
    if price is not None:
        if not math.isfinite(price):
            raise Invalid(f"option --price: expected a number of USD, got {price}", code="out-of-range")
        given["usd_per_million_requests"] = price
    return Rates(**given)


def _kept_to(run: TrainingRun, rates: Rates) -> Rates:
    """What the run file allows copies to take, where a machine has more."""
    limits = run.checkpoint
    disk_rate = limits.local_disk.rate if limits.local_disk is not None else None
    return replace(
        rates,
        peer_bytes_per_s=min(rates.peer_bytes_per_s, limits.peer_rate or math.inf),
        local_disk_bytes_per_s=min(rates.local_disk_bytes_per_s, disk_rate or math.inf),
    )


def _refuse_idle(names: list[str]) -> None:
    if names:
        raise Invalid(
            f"option {names[0]}: expected it with a model whose tensors are known, got a run file without one",
            hint="set spec.model to a ref with tensors or to an inventory",
            code="option-without-effect",
        )


def _mesh(text: str, inventory: Inventory, recipe: Recipe) -> Mesh:
    mesh = parse_mesh(text, name="option --restore-mesh")
    for axis, reason in misfits(inventory, mesh, recipe):
        raise Invalid(
            f"option --restore-mesh: {axis}: {reason}",
            hint=f"change {axis} in {text:.80}; tp x cp x dp must stay equal to etp x ep x edp",
            code="mesh-model",
        )
    return mesh


def _forecasts(
    console: Console, run: TrainingRun, inventory: Inventory, meshes: list[Mesh], recipe: Recipe, rates: Rates
) -> tuple[Forecast, list[Restore]]:
    """The save, counted once, and its restores on `meshes` into states of `recipe`; what they would have to invent
    costs no reading."""
    from behemoth.checkpoint.forecast import NUM_PHASES, forecast, forecast_restore
    from behemoth.checkpoint.model_layout import model_layout
    from behemoth.checkpoint.recipe_change import recipe_change

    try:
        intake = recipe_change(inventory, run.recipe, recipe, make_master=True, new_moments=True)
    except Invalid as error:
        raise error.within("option --restore-recipe") from error
    saved = model_layout(inventory, run.recipe, run.mesh, run.pipeline)
    ranks_per_node, total = run.nodes.gpus_per_node, NUM_PHASES + len(meshes)
    progress = Progress(console, _progress_text)
    try:
        save = forecast(
            saved,
            ranks_per_node=ranks_per_node,
            peer_copies=run.checkpoint.peer_copies,
            failure_domain=run.nodes.failure_domain,
            rates=rates,
            progress=lambda done, _: progress.update(done, total),
        )
        restores = []
        for number, mesh in enumerate(meshes, 1):
            layout = model_layout(inventory, recipe, mesh, run.pipeline if mesh.pp == run.mesh.pp else EVEN)
            found = forecast_restore(saved, layout, ranks_per_node=ranks_per_node, intake=intake)
            restores.append(Restore(mesh=mesh, found=found))
            progress.update(NUM_PHASES + number, total)
        return save, restores
    finally:
        progress.close()


def _held(run: TrainingRun, inventory: Inventory) -> list[RankBytes]:
    from behemoth.checkpoint.rank_bytes import rank_bytes

    return rank_bytes(inventory, run.mesh, run.pipeline, run.recipe)


def _reads_shared(run: TrainingRun) -> bool:
    from behemoth.app.configure import reads_are_shared

    return reads_are_shared(run, run.checkpoint.store or str(RUNS / run.name))


def _progress_text(told: Done) -> str:
    return f"planning a save: {told.done} of {told.total} parts counted in {seconds(told.elapsed_s)}"
