"""`behemoth ckpt export`: a checkpoint as Hugging Face safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Annotated

import typer

from behemoth.app.batches.export_job import write_in_batches
from behemoth.app.batches.jobs import ExportJob
from behemoth.app.batches.tensors import TensorChange, outward
from behemoth.base.errors import Conflict, Invalid
from behemoth.base.units import parse_some_size
from behemoth.checkpoint.interop.casts import FLOAT8
from behemoth.checkpoint.interop.cells import SCALINGS
from behemoth.checkpoint.interop.export import Exported, export, kept_files, unfinished_folder
from behemoth.checkpoint.interop.export_plan import ExportPlan, plan_export
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.opened import Commit
from behemoth.ports import ObjectStore, SavesTo
from behemoth.storage.folders import removed_after_error
from behemoth.storage.open import is_s3, located, open_store
from behemoth.storage.probe_uploads import probe_bucket
from behemoth_cli.commands.batching import Address, Batching, On, batching
from behemoth_cli.commands.candidates import one_of, output_option
from behemoth_cli.commands.interop_options import (
    PRECISIONS,
    DryRun,
    MapOption,
    Rows,
    Select,
    SizeOption,
    change_of,
    dtype_option,
    folder_to_be,
    precision_of,
    require_matches,
    row_ranges,
    watched,
)
from behemoth_cli.commands.selection import Step, Threads, Where, intact, opened, unless_deleted
from behemoth_cli.commands.writing import require_apart
from behemoth_cli.context import PREFIX, Context, chosen_format, find_checkpoints
from behemoth_cli.errors import choose
from behemoth_cli.views.interop import export_page, tensor_listing

_FOLDER_HINT = "name a new or empty folder"
_SIZE_HINT = "for example 5GB, which it is without the option"
_DTYPE_HELP = "Precision of floating arrays. fp8 is e4m3 with scales beside it."
_To = Annotated[
    str, typer.Option("--to", metavar="WHERE", help="A new or empty folder, or s3:// prefix.", show_default=False)
]
_Scaling = Annotated[
    str,
    typer.Option(
        metavar="|".join(SCALINGS),
        help="With fp8: a scale for each tensor or output channel (NAME_scale), or block of 128x128 "
        "(NAME_scale_inv); tensor when left out.",
        autocompletion=one_of(*SCALINGS),
    ),
]
_FileSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Bytes of tensors in a file; a larger tensor has one of its own.")
]


def export_checkpoint(
    ctx: typer.Context,
    where: Where,
    to: _To,
    step: Step = None,
    name_map: MapOption = "",
    size: SizeOption = None,
    dtype: Annotated[str, dtype_option(*PRECISIONS, help=_DTYPE_HELP)] = "",
    fp8_scale: _Scaling = "",
    max_file_size: _FileSize = "5GB",
    select: Select = None,
    rows: Rows = None,
    on: On = "threads",
    address: Address = "",
    threads: Threads = 4,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Write a checkpoint as safetensors, the newest one without --step.

    Every byte is checked on the way. Files appear only whole, the index last; told again after it was cut off, it goes
    on behind the whole files.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    max_file_bytes = parse_some_size(max_file_size, name="option --max-file-size", hint=_SIZE_HINT, code="file-size")
    precision = precision_of(dtype, *PRECISIONS)
    change = change_of(select, name_map, size, precision, _scaling(fp8_scale, precision), row_ranges(rows))
    _require_folder(to)
    # Each worker writes one file at a time, and reads its tensors on all threads.
    options = batching(context.console, on=on, address=address, threads=1)
    place = find_checkpoints(where)
    require_apart(place.url, to, code="export-folder")
    with options as batches, closing(open_store(place.url)) as store, closing(open_store(to)) as target:
        commit = opened(store, intact(store, place, step, note=context.console.note))
        found = stored_tensors(store, commit, threads=threads)
        require_matches(found, select)
        tensors, metadata = outward(found, change), _provenance(commit, change)
        plan = plan_export(tensors, max_file_bytes=max_file_bytes, metadata=metadata)
        if is_dry:
            kept = kept_files(target, plan)
            if not form:
                context.console.show(tensor_listing(tensors), form)
        else:
            ref = commit.record.ref
            job = ExportJob(
                url=os.fsencode(located(place.url, store)),
                step=ref.step,
                write_id=ref.write_id,
                size_bytes=ref.size_bytes,
                to=os.fsencode(located(to, target)),
                unfinished=unfinished_folder(),
                change=change,
                max_file_bytes=max_file_bytes,
                metadata=list(metadata.items()),
                threads=threads,
            )
            kept = _export(batches, store, commit, target, plan, job)
        page = export_page(plan, step=commit.record.step, target=target.root, kept=kept, is_done=not is_dry)
        context.console.show(page, form)


def _require_folder(to: str) -> None:
    """Raises Conflict for a run, and for a path at which no folder can be; a bucket is as good as one."""
    if to.startswith(PREFIX):
        raise Conflict(f"option --to {to}: expected a folder, got a run", hint=_FOLDER_HINT, code="export-folder")
    if not is_s3(to):
        folder_to_be(to, expected="a folder", hint=_FOLDER_HINT, code="export-folder")


def _export(
    batches: Batching, store: ObjectStore, commit: Commit, target: SavesTo, plan: ExportPlan, job: ExportJob
) -> tuple[str, ...]:
    """Files that stood there already."""

    def do(progress: Callable[[int, int], None]) -> Exported:
        if batches.is_here:
            return export(target, plan, progress=progress)
        spread = write_in_batches(batches.executor(), job, plan, progress=progress)
        return export(target, plan, unfinished=job.unfinished, spread=spread)

    to = os.fsdecode(job.to)
    probe_bucket(target, url=to)
    with nullcontext() if is_s3(to) else removed_after_error(to), unless_deleted(store, commit.record.ref):
        return watched(batches.console, f"exporting checkpoint/{job.step}", do).kept


def _scaling(text: str, precision: str) -> str:
    """Raises Invalid for an unknown one, and for one without fp8."""
    if not text:
        return SCALINGS[0]
    if precision != FLOAT8:
        raise Invalid("option --fp8-scale: expected it with --dtype fp8", code="option-without-effect")
    return choose(text, SCALINGS, name="option --fp8-scale")


def _provenance(commit: Commit, change: TensorChange) -> dict[str, str]:
    """What goes into every file. Two exports with the same heads are the same export, so all that decides what the
    bytes are is in it; transformers wants `format`."""
    record = commit.record
    made: dict[str, object] = {
        "run": record.run,
        "step": record.step,
        "write": record.write_id,
        "index": f"{record.index_crc:08x}",
        "map": change.names.names().digest if change.names is not None else "",
        "dtype": change.precision,
        "scale": change.scaling,
    }
    if change.rows:
        made["rows"] = [[one.pattern, one.start, one.stop] for one in change.rows]
    return {"format": "pt", "behemoth": json.dumps(made, separators=(",", ":"))}
