"""`behemoth ckpt import`: Hugging Face safetensors, or a checkpoint of torch's DCP, as a checkpoint."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from behemoth.app.import_lock import importing
from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.interop.casts import unscaled
from behemoth.checkpoint.interop.foreign import FILE_SUFFIX, read_model
from behemoth.checkpoint.interop.ingest import check_free, import_layout, import_tensors
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.paths import COMMITS, MAX_STEP, OWNER, REJECTED, STEPS
from behemoth.checkpoint.sequential import SequentialStore
from behemoth.ports import ObjectStore, WritesRanges
from behemoth.storage.open import is_s3, open_bucket, open_files, path_of
from behemoth.storage.probe_uploads import probe_uploads
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.interop_options import (
    FULL_PRECISIONS,
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
from behemoth_cli.commands.selection import Threads
from behemoth_cli.context import PREFIX, Context, chosen_format
from behemoth_cli.out.console import Console
from behemoth_cli.views.interop import import_page

_DCP_METADATA = ".metadata"
"""By this file torch's DCP knows a checkpoint, and so do we, without torch."""
_DTYPE_HELP = "Precision of floating tensors; float8 ones are multiplied by their scales, NAME_scale."
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
    threads: Threads = 4,
    is_dry: DryRun = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Make a checkpoint out of safetensors files or a DCP checkpoint, with a map applied backwards."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    precision = precision_of(dtype, *FULL_PRECISIONS)
    names = map_of(name_map, size or ())
    folder, file = _source(source)
    with closing(open_files(folder)) as given, _target(to, is_dry=is_dry) as (store, url):
        given_tensors = _read(context.console, given, file, threads=threads, skips_pickles=skips_pickles)
        tensors = selected(given_tensors, select or ())
        if precision:
            tensors = unscaled(tensors, precision)
        if names is not None:
            tensors = names.inverse().apply(tensors)
        layout = import_layout(tensors)
        check_free(store, Step(step))
        write_id = None
        if not is_dry:
            write_id = WriteId(f"import-{secrets.token_hex(4)}")
            make = partial(
                import_tensors,
                store,
                tensors,
                run=f"import:{_text(Path(given.root).name)}",
                step=Step(step),
                write_id=write_id,
                committed_us=time.time_ns() // 1000,
            )
            with nullcontext() if is_s3(url) else importing(Path(url)):
                watched(context.console, f"importing checkpoint/{step}", lambda progress: make(progress=progress))
        context.console.show(import_page(layout, step=step, source=source, url=url, write_id=write_id), form)


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


def _text(name: str) -> str:
    """A name of a file as a record can hold it; bytes that are no UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _read(
    console: Console, given: ObjectStore, file: str | None, *, threads: int, skips_pickles: bool
) -> Mapping[str, Tensor]:
    """The tensors of the source, which is a DCP checkpoint where its metadata is."""
    if file is None and any(info.key == _DCP_METADATA for info in given.list("")):
        from behemoth.dcp.foreign import read_dcp  # torch takes a second to load

        state = read_dcp(given, threads=threads, skips_pickles=skips_pickles)
        if state.skipped:
            console.note(f"left out, since only pickle could load them: {', '.join(state.skipped)}")
        return state.tensors
    if skips_pickles:
        raise Invalid(
            "option --skip-pickled: expected a DCP checkpoint, got safetensors, which hold no pickles",
            code="option-without-effect",
        )
    return read_model(given, file=file, threads=threads).tensors


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
