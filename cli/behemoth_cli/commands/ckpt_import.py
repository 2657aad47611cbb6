"""`behemoth ckpt import`: Hugging Face safetensors, or a checkpoint of torch's DCP, as a checkpoint."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from behemoth.app.batches.import_job import ImportWork, import_job, require_written, write_in_batches
from behemoth.app.batches.jobs import ImportJob, encode_job
from behemoth.app.batches.tensors import inward
from behemoth.app.import_lock import importing
from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.interop.foreign import FILE_SUFFIX, read_model
from behemoth.checkpoint.interop.ingest import check_free, import_layout, import_tensors
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import COMMITS, MAX_STEP, OWNER, REJECTED, STEPS
from behemoth.checkpoint.sequential import SequentialStore
from behemoth.ports import ObjectStore, WritesRanges
from behemoth.storage.open import is_s3, open_bucket, open_files, open_source, path_of
from behemoth.storage.probe_uploads import probe_uploads
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
    folder_to_be,
    precision_of,
    require_matches,
    watched,
)
from behemoth_cli.commands.selection import Threads
from behemoth_cli.context import PREFIX, Context, chosen_format
from behemoth_cli.views.interop import import_page

_DCP_METADATA = ".metadata"
"""By this file torch's DCP knows a checkpoint, and so do we, without torch."""
_DTYPE_HELP = "Precision of floating tensors; float8 ones are multiplied by their scales."
_TARGET = "a checkpoint store, or a folder that is empty or not there"
_TARGET_HINT = "name a folder of its own; a run takes it over when spec.checkpoint.store and its name lead there"


def import_checkpoint(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder with safetensors files, one such file, or a DCP checkpoint.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="WHERE", help="Path or URL of a store that is no run's.", show_default=False)
    ],
    step: Annotated[
        int, typer.Option("--step", metavar="N", min=0, max=MAX_STEP, help="The step that the checkpoint gets.")
    ] = 0,
    name_map: MapOption = "",
    size: SizeOption = None,
    dtype: Annotated[str, dtype_option(*FULL_PRECISIONS, help=_DTYPE_HELP)] = "",
    select: Select = None,
    skips_pickles: Annotated[
        bool, typer.Option("--skip-pickled", help="Leave out values of a DCP checkpoint that only pickle could load.")
    ] = False,
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
    if is_s3(to) and (on != "threads" or state or anew):
        raise Invalid(
            "option --to: expected a folder with --on ray, --state or --anew, got a bucket, which is written in order",
            code="option-without-effect",
        )
    options = batching(context.console, on=on, address=address, threads=threads, state=state, anew=anew)
    with options as batches, closing(open_source(folder)) as given, _target(to, is_dry=is_dry) as (store, url):
        found, files = _read(batches, given, file, skips_pickles=skips_pickles)
        require_matches(found, select)
        tensors = inward(found, change)
        layout = import_layout(tensors)
        check_free(store, Step(step))
        write_id = None
        if not is_dry:
            job = import_job(
                given.root,
                file or "",
                url,
                change,
                layout,
                step=Step(step),
                files=files,
                threads=1,
            )
            write_id = (_import_in_order if is_s3(to) else _import)(batches, store, tensors, layout, job)
        page = import_page(layout, step=step, source=source, url=url, write_id=write_id)
        context.console.show(page, form)


@contextmanager
def _target(to: str, *, is_dry: bool) -> Iterator[tuple[WritesRanges, str]]:
    """The store that is written to, and its path or URL. A bucket's server is tried out before the first byte."""
    if not is_s3(to):
        _check_target(to)
        with closing(open_files(to)) as files:
            yield files, files.root
        return
    with closing(open_bucket(to)) as bucket, SequentialStore(bucket) as store:
        if not is_dry:
            probe_uploads(bucket, url=bucket.root)
        yield store, bucket.root


def _import_in_order(
    batches: Batching, store: WritesRanges, tensors: Mapping[str, Tensor], layout: Layout, job: ImportJob
) -> WriteId:
    """Into a bucket, whose objects are written from front to back; the write that was committed."""
    del layout
    write_id = _fresh()

    def do(progress: Callable[[int, int], None]) -> CommitRecord:
        return import_tensors(
            store,
            tensors,
            run=_run_of(job),
            step=Step(job.step),
            write_id=write_id,
            committed_us=time.time_ns() // 1000,
            progress=progress,
        )

    watched(batches.console, f"importing checkpoint/{job.step}", do)
    return write_id


def _import(
    batches: Batching, store: WritesRanges, tensors: Mapping[str, Tensor], layout: Layout, job: ImportJob
) -> WriteId:
    """The write that was committed. While it goes on, nobody clears what it has written; what is recorded stays when
    it fails."""
    fresh, num_bytes = _fresh(), sum(array.num_bytes for array in layout.arrays)
    with (
        importing(Path(os.fsdecode(job.to))),
        batches.record("import", encode_job(job), num_bytes=num_bytes, note=fresh) as record,
    ):
        write_id = require_written(store, job, layout, record, fresh)
        named = msgspec.structs.replace(job, write_id=write_id)
        executor = batches.executor(lambda _job: ImportWork(named, tensors))

        def do(progress: Callable[[int, int], None]) -> CommitRecord:
            return import_tensors(
                store,
                tensors,
                run=_run_of(job),
                step=Step(job.step),
                write_id=write_id,
                committed_us=time.time_ns() // 1000,
                spread=write_in_batches(executor, named, layout, record, progress=progress),
                keeps_unfinished=record.is_kept,
            )

        watched(batches.console, f"importing checkpoint/{job.step}", do)
    return write_id


def _fresh() -> WriteId:
    return WriteId(f"import-{secrets.token_hex(4)}")


def _run_of(job: ImportJob) -> str:
    """What stands for a run in the record."""
    return f"import:{_text(Path(os.fsdecode(job.folder)).name)}"


def _text(name: str) -> str:
    """A name of a file as a record can hold it; bytes that are no UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _read(
    batches: Batching, given: ObjectStore, file: str | None, *, skips_pickles: bool
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The tensors of the source, which is a DCP checkpoint where its metadata is, and its files."""
    files = tuple(info.key for info in given.list("")) if file is None else ()
    if _DCP_METADATA in files:
        from behemoth.dcp.foreign import read_dcp  # torch takes a second to load

        if not batches.is_here:
            raise Invalid(
                "option --on ray: expected safetensors files, got a DCP checkpoint",
                hint="leave it out: a DCP checkpoint is read by threads of this process",
                code="option-without-effect",
            )
        state = read_dcp(given, threads=1, skips_pickles=skips_pickles)
        if state.skipped:
            batches.console.note(f"left out, since only pickle could load them: {', '.join(state.skipped)}")
        return state.tensors, files
    if skips_pickles:
        raise Invalid(
            "option --skip-pickled: expected a DCP checkpoint, got safetensors, which hold no pickles",
            code="option-without-effect",
        )
    model = read_model(given, file=file, threads=1)
    return model.tensors, model.files


def _source(text: str) -> tuple[str, str | None]:
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
    return str(path), None


def _check_target(text: str) -> None:
    """A store is made where nothing is; a folder of something else is no place for one."""
    path = folder_to_be(text, expected=_TARGET, hint=_TARGET_HINT, code="import-folder")
    is_store = any((path / name).is_dir() for name in (COMMITS, STEPS, REJECTED, OWNER))
    if text.startswith(PREFIX) or (path.exists() and not is_store and any(path.iterdir())):
        got = "a run" if text.startswith(PREFIX) else "a folder with other files"
        raise Conflict(f"option --to {text}: expected {_TARGET}, got {got}", hint=_TARGET_HINT, code="import-folder")
