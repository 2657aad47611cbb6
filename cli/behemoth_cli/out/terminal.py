"""Listings and pages for a terminal: bold heads, colours of states, columns folded to the width instead of cut. Where
that would break short words, each row becomes a block of lines.

The only module beside `live` that knows rich; imported when a terminal is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from behemoth_cli.out.table import Column, Listing, Page, Section, one_line

_STYLES = {
    **dict.fromkeys(("ok", "succeeded", "training", "working"), "green"),
    **dict.fromkeys(("damaged", "failed", "lost"), "red"),
    **dict.fromkeys(("rejected", "late", "coming", "recovering", "suspended", "interrupted"), "yellow"),
    "spare": "cyan",
}
_UNBOUNDED = 100_000
"""Columns of a pipe: nothing is folded."""
_FOLDED = 12
"""Words of up to so many columns are never broken; longer ones, such as paths and digests, may be."""
_GAP = 2
"""Columns between those of a table, and in front of what stands below a title."""


def print_rich(stream: TextIO, shown: Listing | Page, *, is_wide: bool, color: bool, width: int | None) -> None:
    """Write to `stream`; `width` is None for a pipe that wants colour."""
    console = _Console(
        file=stream,
        force_terminal=True,
        color_system="standard" if color else None,
        no_color=not color,
        width=width or _UNBOUNDED,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    parts = _rows(shown, is_wide, console.width) if isinstance(shown, Listing) else _page(shown, console.width)
    for part in parts:
        console.print(part)


class _Console(Console):
    """A rich Console that raises BrokenPipeError to its caller; rich would end the process."""

    @override
    def on_broken_pipe(self) -> None:
        raise


def _page(page: Page, width: int) -> Iterator[RenderableType]:
    for number, section in enumerate(page.sections):
        body = list(_section(section, width - _GAP if section.title else width))
        if not body:
            continue
        if number:
            yield ""
        if section.title:
            yield Text(section.title, style="bold")
        yield from (Padding(part, (0, 0, 0, _GAP)) if section.title else part for part in body)


def _section(section: Section, width: int) -> Iterator[RenderableType]:
    if section.pairs:
        yield _pairs(section.pairs)
    if section.listing is not None and section.listing.rows:
        yield from _rows(section.listing, False, width)
    if section.lines:
        yield Text("\n".join(section.lines))


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(Text(f"{name}:", style="dim"), _cell(text))
    return grid


def _rows(listing: Listing, is_wide: bool, width: int) -> Iterator[RenderableType]:
    """A table, or a block for each row where the terminal is too narrow for one."""
    shown = [number for number, column in enumerate(listing.columns) if is_wide or not column.is_wide]
    columns = [listing.columns[number] for number in shown]
    rows = [[one_line(row[number]) for number in shown] for row in listing.rows]
    widths = _widths([[column.name.upper() for column in columns], *rows], width)
    if widths is not None:
        yield _table(columns, rows, widths)
        return
    for number, row in enumerate(rows):
        if number:
            yield ""
        yield _pairs([(column.name, cell) for column, cell in zip(columns, row, strict=True)])


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Columns for each column of a table, of which the widest are folded where they must be; None where that would
    break words of up to _FOLDED."""
    columns = list(zip(*rows, strict=True))
    most = [max(map(cell_len, column)) for column in columns]
    words = [[word for cell in column for word in cell.split()] for column in columns]
    widths = [max((min(_FOLDED, cell_len(word)) for word in of_column), default=0) for of_column in words]
    left = width - _GAP * (len(columns) - 1) - sum(widths)
    if left < 0:
        return None
    while left and (grow := [number for number, all_of_it in enumerate(most) if widths[number] < all_of_it]):
        widths[min(grow, key=widths.__getitem__)] += 1
        left -= 1
    return widths


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column.name.upper(), justify=column.align, overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(text: str) -> Text:
    return Text(one_line(text), style=_STYLES.get(text, ""))
