"""`behemoth ckpt export`: a checkpoint as Hugging Face safetensors."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated

import typer

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.units import parse_size
from behemoth.checkpoint.interop.casts import converted
from behemoth.checkpoint.interop.export import ExportPlan, export, kept_files, plan_export
from behemoth.checkpoint.interop.rules import NameMap
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.reader import Commit, open_commit
from behemoth.ports import ObjectStore, WritesRanges
from behemoth.storage.open import open_files, open_store
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.interop_options import (
    PRECISIONS,
    DryRun,
    MapOption,
    Select,
    SizeOption,
    dtype_option,
    folder_to_be,
    map_of,
    precision_of,
    selected,
    watched,
)
from behemoth_cli.commands.selection import Step, Threads, Where, intact, require_still_there
from behemoth_cli.context import Context, chosen_format, find_checkpoints
from behemoth_cli.out.console import Console
from behemoth_cli.views.interop import export_page, tensor_listing

_DTYPE_HELP = "Precision of floating arrays. fp8 is e4m3 with a scale per tensor, NAME_scale."


def export_checkpoint(
    ctx: typer.Context,
    where: Where,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A new or empty folder.", show_default=False)],
    step: Step = None,
    name_map: MapOption = "",
    size: SizeOption = None,
    dtype: Annotated[str, dtype_option(*PRECISIONS, help=_DTYPE_HELP)] = "",
    max_file_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes of tensors in a file; a larger tensor has one of its own.")
    ] = "5GB",
    select: Select = None,
    threads: Threads = 4,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Write a checkpoint as safetensors, the newest one without --step.

    Every byte is checked on the way. Files appear only whole, the index last; told again after it was cut off, it goes
    on behind the last whole file.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    max_file_bytes = _file_size(max_file_size)
    precision = precision_of(dtype, *PRECISIONS)
    names = map_of(name_map, size or ())
    folder_to_be(to, expected="a folder", hint="name a new or empty folder", code="export-folder")
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store, closing(open_files(to)) as folder:
        commit = open_commit(store, intact(store, place, step))
        tensors = selected(stored_tensors(store, commit, threads=threads), select or ())
        if names is not None:
            tensors = names.apply(tensors)
        if precision:
            tensors = converted(tensors, precision, is_unscaled=names.is_unscaled if names else lambda _: False)
        plan = plan_export(tensors, max_file_bytes=max_file_bytes, metadata=_provenance(commit, names, precision))
        number = commit.record.step
        if is_dry:
            kept = kept_files(folder, plan)
            if not form:
                context.console.show(tensor_listing(tensors), form)
        else:
            kept = _export(context.console, store, commit, folder, plan)
        context.console.show(export_page(plan, step=number, folder=folder.root, kept=kept, is_done=not is_dry), form)


def _export(
    console: Console, store: ObjectStore, commit: Commit, folder: WritesRanges, plan: ExportPlan
) -> tuple[str, ...]:
    """Files that stood there already. A live run's retention may delete what is being read; that is no damage."""
    step = commit.record.step
    try:
        doing = f"exporting checkpoint/{step}"
        return watched(console, doing, lambda progress: export(folder, plan, progress=progress)).kept
    except Corrupt:
        require_still_there(store, commit.record)
        raise


def _file_size(text: str) -> int:
    size_bytes = parse_size(text, name="option --max-file-size")
    if size_bytes < 1:
        raise Invalid(f"option --max-file-size: expected at least 1B, got {text}", code="file-size")
    return size_bytes


def _provenance(commit: Commit, names: NameMap | None, precision: str) -> dict[str, str]:
    """What goes into every file. Two exports with the same heads are the same export, so all that decides what the
    bytes are is in it; transformers wants `format`."""
    record = commit.record
    made = {
        "run": record.run,
        "step": record.step,
        "write": record.write_id,
        "index": f"{record.index_crc:08x}",
        "map": names.digest if names is not None else "",
        "dtype": precision,
    }
    return {"format": "pt", "behemoth": json.dumps(made, separators=(",", ":"))}
