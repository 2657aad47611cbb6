"""`behemoth ckpt reshard`: a checkpoint, written anew in another store on the grid of another mesh."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from behemoth.app.batches.jobs import ReshardJob, encode_job
from behemoth.app.batches.reshard_job import reshard_job, reshard_writing
from behemoth.app.batches.writing import Writing
from behemoth.base.errors import Invalid
from behemoth.base.ids import Attempt
from behemoth.checkpoint.interop.relayout import Relayout, relayout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.recipe_change import recipe_change
from behemoth.checkpoint.row_ranges import RowRange
from behemoth.checkpoint.verify import require_committed
from behemoth.ports import ObjectStore, SavesTo, UploadsParts
from behemoth.spec.mesh import parse_mesh
from behemoth.spec.recipe import parse_recipe
from behemoth.storage.open import located, open_store
from behemoth_cli.commands.batching import Address, Anew, Batching, On, State, batching
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.interop_options import (
    FULL_PRECISIONS,
    DryRun,
    Rows,
    dtype_option,
    precision_of,
    row_ranges,
)
from behemoth_cli.commands.plan import inventory_of
from behemoth_cli.commands.selection import NewStore, Step, Threads, Where, intact, opened, unless_deleted
from behemoth_cli.commands.writing import Made, done_before, opened_target, require_apart, write_recorded
from behemoth_cli.context import Context, chosen_format, find_checkpoints, read_run
from behemoth_cli.views.interop import reshard_page

_DTYPE_HELP = "Precision of floating arrays but float8 ones, optimizer and all."
_RECIPE_HELP = "Recipe of the result, such as weights=bfloat16,master=none; the run file's is what was saved."

_RunFile = Annotated[
    Path | None,
    typer.Option("-f", "--file", metavar="FILE", help="Or a run file: its mesh, and its model's cuts where known."),
]
_Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PATTERN", help="Arrays to take, as 'model/*'. Repeatable.")
]


def reshard_checkpoint(
    ctx: typer.Context,
    where: Where,
    to: NewStore,
    step: Step = None,
    mesh: Annotated[str, typer.Option("--mesh", metavar="AXES", help="The mesh, such as tp=4,dp=2.")] = "",
    file: _RunFile = None,
    only: _Only = None,
    rows: Rows = None,
    dtype: Annotated[str, dtype_option(*FULL_PRECISIONS, help=_DTYPE_HELP)] = "",
    recipe: Annotated[str, typer.Option("--recipe", metavar="FIELDS", help=_RECIPE_HELP)] = "",
    on: On = "threads",
    address: Address = "",
    threads: Threads = 4,
    state: State = "",
    anew: Anew = False,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Write a checkpoint on the grid of another mesh into another store, the newest one without --step.

    Step, run and records go along, and every bit that nothing is asked to convert. Killed in the middle of a large
    one, the same command goes on where it stopped.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    precision = precision_of(dtype, *FULL_PRECISIONS)
    wanted = _Wanted(mesh=mesh, file=file, only=only or (), rows=row_ranges(rows), dtype=precision, recipe=recipe)
    options = batching(context.console, on=on, address=address, threads=threads, state=state, anew=anew)
    place = find_checkpoints(where)
    require_apart(place.url, to, code="reshard-same")
    with (
        options as batches,
        closing(open_store(place.url)) as given,
        opened_target(to, code="reshard-folder", is_dry=is_dry) as store,
    ):
        url = located(to, store)
        commit = opened(given, intact(given, place, step, note=context.console.note))
        made = wanted.of(commit, is_bucket=isinstance(store, UploadsParts))
        ref = commit.record.ref
        job = reshard_job(located(place.url, given), ref, url, made)
        reshard = reshard_writing(commit, made, store, threads=threads)
        written = done_before(batches, store, verb="reshard", job=encode_job(job), step=ref.step, is_dry=is_dry)
        if written is None and not is_dry:
            written = _reshard(batches, given, store, url, commit, job, reshard.writing, threads=threads)
        page = reshard_page(
            commit,
            made.layout,
            source=given.root,
            url=store.root,
            again_bytes=reshard.again_bytes,
            write_id=None if written is None else written.write_id,
            is_kept=written is not None and written.is_kept,
        )
        context.console.show(page, form)


def _reshard(
    batches: Batching,
    given: ObjectStore,
    store: SavesTo,
    url: str,
    commit: Commit,
    job: ReshardJob,
    writing: Writing,
    *,
    threads: int,
) -> Made:
    record = commit.record
    with unless_deleted(given, record.ref):
        require_committed(given, record.ref, threads=threads)
        return write_recorded(
            batches,
            store,
            url,
            writing,
            verb="reshard",
            job=lambda write_id: encode_job(msgspec.structs.replace(job, new_write_id=write_id)),
            run=record.run,
            step=record.step,
            attempt=Attempt(record.attempt),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the options ask for."""

    mesh: str
    file: Path | None
    only: Sequence[str]
    rows: Sequence[RowRange]
    dtype: str
    recipe: str

    def of(self, commit: Commit, *, is_bucket: bool) -> Relayout:
        """Raises Invalid for options that do not go together, or not with this checkpoint."""
        if bool(self.mesh) == (self.file is not None):
            raise Invalid(
                f"options --mesh and -f: expected one of them, got {'both' if self.mesh else 'none'}",
                hint="--mesh tp=4,dp=2, or -f RUN.yaml",
                code="reshard-mesh",
            )
        make = partial(
            relayout,
            commit.layout,
            step=commit.record.step,
            sharding="box" if is_bucket else "array",
            only=self.only,
            rows=self.rows,
            dtype=self.dtype,
        )
        run = None if self.file is None else read_run(self.file)
        inventory = None if run is None else inventory_of(run)
        if run is None or inventory is None or not inventory.tensors:
            if self.recipe:
                raise Invalid(
                    "option --recipe: expected it with the run file of a model whose tensors are known, got none",
                    hint="name one with -f; its spec.model is a ref with tensors or an inventory",
                    code="option-without-effect",
                )
            return make(run.mesh if run is not None else parse_mesh(self.mesh, name="option --mesh"))
        recipe, change = run.recipe, None
        if self.recipe:
            recipe = parse_recipe(self.recipe, run.recipe, name="option --recipe")
            try:
                change = recipe_change(inventory, run.recipe, recipe)
            except Invalid as error:
                raise error.within("option --recipe") from error
        return make(run.mesh, model=model_layout(inventory, recipe, run.mesh, run.pipeline), recipe=change)
