"""What `behemoth ckpt export`, `import` and `reshard` have in common: options, and what these mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from behemoth.app.batches.tensors import MapDocument, TensorChange
from behemoth.app.run_directory import refusal
from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.checkpoint.interop.casts import FLOAT8
from behemoth.checkpoint.interop.cells import SCALINGS
from behemoth.checkpoint.interop.map_file import MAP_NAMES, shipped_map
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.checkpoint.row_ranges import RowRange
from behemoth.storage.open import path_of
from behemoth_cli.commands.candidates import one_of
from behemoth_cli.context import read_file
from behemoth_cli.errors import choose, nearest
from behemoth_cli.out.console import Console
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.figures import work

_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": FLOAT8}
PRECISIONS = tuple(_PRECISIONS)
"""What an export takes for --dtype."""
FULL_PRECISIONS = tuple(short for short, name in _PRECISIONS.items() if name != FLOAT8)
"""What an import takes."""
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
SizeOption = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="NAME=N", help="A size that the map names, such as experts=16. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")]
Select = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Names to take, as 'model/*'; before the map. Repeatable."),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--rows",
        metavar="PATTERN=N-M",
        help="Of arrays that match only indexes N to M of the first dim, as '*.experts.*=3-5'. Repeatable.",
    ),
]
_ROWS = re.compile(r"(.+)=([0-9]{1,15})(?:-([0-9]{1,15}))?")


def dtype_option(*precisions: str, help: str) -> Any:
    """The option `--dtype` of a verb that knows these."""
    return typer.Option(metavar="|".join(precisions), help=help, autocompletion=one_of(*precisions))


def precision_of(text: str, *known: str) -> str:
    """The dtype that `--dtype` names, empty for none. Raises Invalid."""
    return _PRECISIONS[choose(text, known, name="option --dtype")] if text else ""


def change_of(
    patterns: Sequence[str] | None,
    name_map: str,
    sizes: Sequence[str] | None,
    precision: str,
    scaling: str = SCALINGS[0],
    rows: Sequence[RowRange] = (),
) -> TensorChange:
    """What `--select`, `--rows`, `--map`, `--size`, a precision and a scaling ask for. Raises Invalid for a map that
    says nothing."""
    names = _map_of(name_map, dict(_size(one) for one in sizes or ()))
    if names is not None:
        names.names()  # what is wrong with it is told before anything is read
    return TensorChange(
        patterns=tuple(patterns or ()), rows=tuple(rows), names=names, precision=precision, scaling=scaling
    )


def row_ranges(texts: Sequence[str] | None) -> list[RowRange]:
    """What `--rows` asks for. Raises Invalid."""
    return [_row_range(text) for text in texts or ()]


def _row_range(text: str) -> RowRange:
    match = _ROWS.fullmatch(text)
    first, last = (int(match[2]), int(match[3] or match[2])) if match else (1, 0)
    if match is None or last < first:
        raise Invalid(
            f"option --rows: expected a pattern of names and indexes, got {text!r:.80}",
            hint="for example 'model/*.experts.*=3-5' for three experts, or =3 for one",
            code="rows",
        )
    return RowRange(pattern=match[1], start=first, stop=last + 1)


def _map_of(text: str, sizes: dict[str, int]) -> MapDocument | None:
    """A map that ships with the package, or a file; a file of that very name is meant as ./NAME."""
    if not text:
        if sizes:
            raise Invalid("option --size: expected it with --map, got it alone", code="option-without-effect")
        return None
    if text in MAP_NAMES:
        return MapDocument(data=shipped_map(text), source=f"map {text}", sizes=sizes)
    try:
        return MapDocument(data=read_file(Path(text)), source=text, sizes=sizes)
    except NotFound as error:
        hint = nearest(text, MAP_NAMES) or f"maps by name: {', '.join(MAP_NAMES)}"
        raise NotFound(f"option --map: {error.message}", hint=hint, code="map-not-found") from error


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not (name and number.isascii() and number.isdigit() and len(number) < 16):
        raise Invalid(
            f"option --size: expected a name and a number, such as experts=16, got {text!r}", code="map-sizes"
        )
    return name, int(number)


def require_matches(names: Collection[str], patterns: Sequence[str] | None) -> None:
    """A pattern that matches nothing is a slip. Raises NotFound."""
    for pattern in NamePatterns(patterns or ()).unused(names):
        raise NotFound(
            f"option --select: expected {pattern!r} to match one of {len(names)} names, got none",
            hint=nearest(pattern, names) or f"names here begin with {next(iter(names), 'nothing')}",
            code="select-nothing",
        )


def folder_to_be(text: str, *, expected: str, hint: str, code: str) -> Path:
    """The path of `--to`, which need not be there. Raises Conflict where a file is in its way, and Denied or Invalid
    where nobody can tell."""
    path = Path(path_of(text))
    try:
        standing = next(one for one in (path, *path.absolute().parents) if one.exists() or one.is_symlink())
        is_folder = standing.is_dir()
    except OSError as error:
        raise refusal(path, "look there", error) from error
    if not is_folder:
        got = "a file" if standing == path else f"a path below the file {standing}"
        raise Conflict(f"option --to {text}: expected {expected}, got {got}", hint=hint, code=code)
    return path


def watched(console: Console, doing: str, job: Callable[[Callable[[int, int], None]], _Result]) -> _Result:
    """Run a job with a progress bar in bytes."""
    progress = Progress(console, partial(work, doing))
    try:
        return job(progress.update)
    finally:
        progress.close()
