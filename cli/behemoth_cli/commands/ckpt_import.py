"""`behemoth ckpt import`: Hugging Face safetensors, or a checkpoint of torch's DCP, as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from behemoth.app.batches.import_job import files_of, import_writing, opened_here, require_unchanged
from behemoth.app.batches.jobs import ImportJob, encode_job
from behemoth.app.batches.tensors import inward
from behemoth.base.errors import Invalid, NotFound
from behemoth.base.ids import Step
from behemoth.checkpoint.interop.foreign import FILE_SUFFIX, read_model
from behemoth.checkpoint.interop.ingest import import_layout
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import MAX_STEP
from behemoth.ports import ObjectInfo, ObjectStore, SavesTo
from behemoth.storage.open import is_s3, located, open_source, path_of
from behemoth_cli.commands.batching import Address, Anew, Batching, On, State, batching
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.interop_options import (
    FULL_PRECISIONS,
    DryRun,
    MapOption,
    Select,
    SizeOption,
    change_of,
    dtype_option,
    precision_of,
    require_matches,
)
from behemoth_cli.commands.selection import NewStore, Threads
from behemoth_cli.commands.writing import Made, done_before, opened_target, write_recorded
from behemoth_cli.context import Context, chosen_format
from behemoth_cli.views.interop import import_page

_DCP_METADATA = ".metadata"
"""The file that marks a checkpoint of torch's DCP; it is looked for without importing torch."""
_DCP_WORKER = "behemoth.dcp.batch_worker"
"""Module of the worker program that can read DCP checkpoints."""
_DTYPE_HELP = "Precision of floating tensors; float8 ones are multiplied by their scales."
_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder or s3:// prefix with safetensors files, one such file, or a DCP checkpoint.",
    ),
]
_SkipsPickles = Annotated[
    bool, typer.Option("--skip-pickled", help="Leave out values of a DCP checkpoint that only pickle could load.")
]


def import_checkpoint(
    ctx: typer.Context,
    source: _Source,
    to: NewStore,
    step: Annotated[
        int, typer.Option("--step", metavar="N", min=0, max=MAX_STEP, help="The step that the checkpoint gets.")
    ] = 0,
    name_map: MapOption = "",
    size: SizeOption = None,
    dtype: Annotated[str, dtype_option(*FULL_PRECISIONS, help=_DTYPE_HELP)] = "",
    select: Select = None,
    skips_pickles: _SkipsPickles = False,
    on: On = "threads",
    address: Address = "",
    threads: Threads = 4,
    state: State = "",
    anew: Anew = False,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Make a checkpoint out of safetensors files or a DCP checkpoint, with a map applied backwards.

    Killed in the middle of a large one, the same command goes on where it stopped.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    change = change_of(select, name_map, size, precision_of(dtype, *FULL_PRECISIONS))
    folder, file = _source(source)
    options = batching(context.console, on=on, address=address, threads=threads, state=state, anew=anew)
    with (
        options as batches,
        closing(open_source(folder)) as given,
        opened_target(to, code="import-folder", is_dry=is_dry) as store,
    ):
        url = located(to, store)
        found = _read(batches, source, given, file, skips_pickles=skips_pickles)
        require_matches(found.tensors, select)
        tensors = inward(found.tensors, change)
        layout = import_layout(tensors)
        job = ImportJob(
            source=os.fsencode(located(folder, given)),
            kind=found.kind,
            file=os.fsencode(file),
            files=files_of(folder, found.files),
            skips_pickles=skips_pickles,
            to=os.fsencode(url),
            step=step,
            change=change,
            layout_digest=layout.digest,
        )
        made = done_before(batches, store, verb="import", job=encode_job(job), step=Step(step), is_dry=is_dry)
        if made is None and not is_dry:
            check = partial(require_unchanged, folder, given, job.files)
            made = _import(batches, store, url, tensors, layout, job, given.root, check)
        page = import_page(
            layout,
            step=step,
            source=source,
            url=store.root,
            write_id=None if made is None else made.write_id,
            is_kept=made is not None and made.is_kept,
        )
        context.console.show(page, form)


def _import(
    batches: Batching,
    store: SavesTo,
    url: str,
    tensors: Mapping[str, Tensor],
    layout: Layout,
    job: ImportJob,
    root: str,
    check: Callable[[], None],
) -> Made:
    """`check`: see `write_recorded`."""
    writing = import_writing(layout, store)
    return write_recorded(
        batches,
        store,
        url,
        writing,
        verb="import",
        job=lambda write_id: encode_job(msgspec.structs.replace(job, write_id=write_id)),
        open_work=opened_here(store, tensors, writing),
        worker=_DCP_WORKER if job.kind == "dcp" else None,
        run=f"import:{_text(Path(root).name)}",
        step=Step(job.step),
        check=check,
    )


def _text(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The tensors of a source, and the files that hold them."""

    kind: Literal["safetensors", "dcp"]
    tensors: Mapping[str, Tensor]
    files: Sequence[ObjectInfo]


def _read(batches: Batching, source: str, given: ObjectStore, file: str, *, skips_pickles: bool) -> _Given:
    """A source is a DCP checkpoint where its metadata is."""
    files = {info.key: info for info in given.list("")}
    if _DCP_METADATA in files and not file:
        from behemoth.dcp.foreign import read_dcp  # torch takes a second to load

        state = read_dcp(given, threads=1, skips_pickles=skips_pickles)
        if state.skipped:
            batches.console.note(f"left out, since only pickle could load them: {', '.join(state.skipped)}")
        top = [info for key, info in files.items() if "/" not in key]  # where torch puts all of them
        return _Given(kind="dcp", tensors=state.tensors, files=top)
    if skips_pickles:
        raise Invalid(
            "option --skip-pickled: expected a DCP checkpoint, got safetensors, which hold no pickles",
            code="option-without-effect",
        )
    model = read_model(given, file=file or None, threads=1, source=source)
    return _Given(kind="safetensors", tensors=model.tensors, files=[files[name] for name in model.files])


def _source(text: str) -> tuple[str, str]:
    """Where the files are, and which one is meant; empty: all that belong together."""
    if is_s3(text):
        head, mark, how = text.partition("?")
        folder, _, name = head.rpartition("/")
        return (folder + mark + how, name) if name.endswith(FILE_SUFFIX) else (text, "")
    path = Path(path_of(text))
    if path.name.endswith(FILE_SUFFIX) and path.is_file():
        return str(path.parent), path.name
    if not path.is_dir():
        hint = (
            f"name a folder with safetensors files or {_DCP_METADATA}, or one file of a name that ends in {FILE_SUFFIX}"
        )
        got = "another file" if path.exists() else "none of that name"
        raise NotFound(
            f"{text}: expected a folder, or a {FILE_SUFFIX} file, got {got}", hint=hint, code="safetensors-not-found"
        )
    return str(path), ""
