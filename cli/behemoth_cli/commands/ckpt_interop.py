"""`behemoth ckpt export` and `import`: checkpoints to Hugging Face safetensors, and back."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.base.ids import Step as StepId
from behemoth.base.ids import WriteId
from behemoth.base.units import parse_size
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.interop.casts import FLOAT8, converted, unscaled
from behemoth.checkpoint.interop.export import ExportPlan, export, kept_files, plan_export
from behemoth.checkpoint.interop.foreign import FILE_SUFFIX, read_model
from behemoth.checkpoint.interop.ingest import check_free, import_layout, import_tensors
from behemoth.checkpoint.interop.map_file import MAP_NAMES, decode_map, named_map
from behemoth.checkpoint.interop.rules import NameMap
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.paths import COMMITS, OWNER, REJECTED, STEPS
from behemoth.checkpoint.reader import Commit, open_commit
from behemoth.ports import ObjectStore, WritesRanges
from behemoth.storage.open import open_store, path_of
from behemoth_cli.commands.candidates import one_of, output_option
from behemoth_cli.commands.selection import Step, Threads, Where, intact
from behemoth_cli.context import PREFIX, Context, chosen_format, find_checkpoints, read_file
from behemoth_cli.errors import choose, nearest
from behemoth_cli.out.console import Console
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.figures import work
from behemoth_cli.views.interop import export_page, import_page, tensor_listing

_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
_FULL = tuple(short for short, name in _PRECISIONS.items() if name != FLOAT8)
_Result = TypeVar("_Result")

MapOption = Annotated[
    str,
    typer.Option(
        "--map",
        metavar="FILE|NAME",
        help=f"How names and layouts change: {', '.join(MAP_NAMES)}, or a file. Without it they stay.",
        autocompletion=one_of(*MAP_NAMES),
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")]


def export_checkpoint(
    ctx: typer.Context,
    where: Where,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A new or empty folder.", show_default=False)],
    step: Step = None,
    name_map: MapOption = "",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="|".join(_PRECISIONS),
            help="Precision of floating arrays. fp8 is e4m3 with a scale per tensor, NAME_scale.",
            autocompletion=one_of(*_PRECISIONS),
        ),
    ] = "",
    max_file_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes of tensors in a file; a larger tensor has one of its own.")
    ] = "5GB",
    select: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Arrays to export, such as 'model/*'. Repeatable.")
    ] = None,
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
    precision = _PRECISIONS[choose(dtype, _PRECISIONS, name="option --dtype")] if dtype else ""
    names = _map(name_map)
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store, closing(open_store(to)) as folder:
        commit = open_commit(store, intact(store, place, step))
        tensors = _selected(stored_tensors(store, commit, threads=threads), select or ())
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


def import_checkpoint(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="DIR", help="A folder with safetensors files, or one file.")],
    to: Annotated[
        str, typer.Option("--to", metavar="WHERE", help="Path or URL of a store that is no run's.", show_default=False)
    ],
    step: Annotated[int, typer.Option("--step", metavar="N", min=0, help="The step that the checkpoint gets.")] = 0,
    name_map: MapOption = "",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="|".join(_FULL),
            help="Precision of floating tensors; float8 ones are multiplied by their scales, NAME_scale.",
            autocompletion=one_of(*_FULL),
        ),
    ] = "",
    select: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Tensors to import. Repeatable.")] = None,
    threads: Threads = 4,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Make a checkpoint out of safetensors files, with a map applied backwards."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    precision = _PRECISIONS[choose(dtype, _FULL, name="option --dtype")] if dtype else ""
    names = _map(name_map)
    folder, file = _source(source)
    _check_target(to)
    with closing(open_store(folder)) as given, closing(open_store(to)) as store:
        tensors = _selected(read_model(given, file=file, threads=threads).tensors, select or ())
        if precision:
            tensors = unscaled(tensors, precision)
        if names is not None:
            tensors = names.inverse().apply(tensors)
        layout = import_layout(tensors)
        check_free(store, StepId(step))
        write_id = None
        if not is_dry:
            write_id = WriteId(f"import-{secrets.token_hex(4)}")
            make = partial(
                import_tensors,
                store,
                tensors,
                run=f"import:{Path(given.root).name}",
                step=StepId(step),
                write_id=write_id,
                committed_us=time.time_ns() // 1000,
            )
            _watched(context.console, f"importing checkpoint/{step}", lambda progress: make(progress=progress))
        context.console.show(import_page(layout, step=step, source=source, url=store.root, write_id=write_id), form)


def _export(
    console: Console, store: ObjectStore, commit: Commit, folder: WritesRanges, plan: ExportPlan
) -> tuple[str, ...]:
    """Files that stood there already. A live run's retention may delete what is being read; that is no damage."""
    step = commit.record.step
    try:
        doing = f"exporting checkpoint/{step}"
        return _watched(console, doing, lambda progress: export(folder, plan, progress=progress)).kept
    except Corrupt as error:
        if commit.record.ref in commits(store):
            raise
        raise NotFound(
            f"checkpoint/{step}: expected it to stay while it was read, got it deleted",
            hint="retention gave it up: export the newest one",
            code="checkpoint-gone",
        ) from error


def _watched(console: Console, doing: str, job: Callable[[Callable[[int, int], None]], _Result]) -> _Result:
    progress = Progress(console, partial(work, doing))
    try:
        return job(progress.update)
    finally:
        progress.close()


def _file_size(text: str) -> int:
    size_bytes = parse_size(text, name="option --max-file-size")
    if size_bytes < 1:
        raise Invalid(f"option --max-file-size: expected at least 1B, got {text}", code="file-size")
    return size_bytes


def _map(text: str) -> NameMap | None:
    """A map that ships with the package, or a file; a file of that very name is meant as ./NAME."""
    if not text:
        return None
    if text in MAP_NAMES:
        return named_map(text)
    try:
        return decode_map(read_file(Path(text)), source=text)
    except NotFound as error:
        hint = nearest(text, MAP_NAMES) or f"maps by name: {', '.join(MAP_NAMES)}"
        raise NotFound(f"option --map: {error.message}", hint=hint, code="map-not-found") from error


def _selected(tensors: Mapping[str, Tensor], patterns: Sequence[str]) -> Mapping[str, Tensor]:
    """What one of the patterns matches; all of it without any. A pattern that matches nothing is a slip."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise NotFound(
                f"option --select: expected {pattern!r} to match one of {len(tensors)} names, got none",
                hint=nearest(pattern, tensors) or f"names here begin with {next(iter(tensors), 'nothing')}",
                code="select-nothing",
            )
    if not patterns:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if any(fnmatchcase(name, one) for one in patterns)}


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


def _source(text: str) -> tuple[str, str | None]:
    path = Path(path_of(text))
    if path.name.endswith(FILE_SUFFIX) and path.is_file():
        return str(path.parent), path.name
    if not path.is_dir():
        hint = f"name a folder with safetensors files, or one file of a name that ends in {FILE_SUFFIX}"
        got = "another file" if path.exists() else "none of that name"
        raise NotFound(
            f"{text}: expected a folder, or a {FILE_SUFFIX} file, got {got}", hint=hint, code="safetensors-not-found"
        )
    return str(path), None


def _check_target(text: str) -> None:
    """A store is made where nothing is; a folder of something else is no place for one."""
    path = Path(path_of(text))
    is_store = any((path / name).is_dir() for name in (COMMITS, STEPS, REJECTED, OWNER))
    if text.startswith(PREFIX) or (path.exists() and not is_store and (not path.is_dir() or any(path.iterdir()))):
        raise Conflict(
            f"option --to: expected a checkpoint store, or a folder that is empty or not there, got {text}",
            hint="name a folder of its own; a run takes it over when spec.checkpoint.store and its name lead there",
            code="import-folder",
        )
