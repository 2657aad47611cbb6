"""Listings and pages for a terminal: bold heads, colours of states, columns folded to the width instead of cut.

The only module beside `live` that knows rich; imported when a terminal is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from behemoth_cli.out.table import Listing, Page, Section, one_line

_STYLES = {
    **dict.fromkeys(("ok", "succeeded", "training", "working"), "green"),
    **dict.fromkeys(("damaged", "failed", "lost"), "red"),
    **dict.fromkeys(("rejected", "late", "coming", "recovering", "suspended", "interrupted"), "yellow"),
    "spare": "cyan",
}
_UNBOUNDED = 100_000
"""Columns of a pipe: nothing is folded."""


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
    for part in [_table(shown, is_wide)] if isinstance(shown, Listing) else _page(shown):
        console.print(part)


class _Console(Console):
    """A rich Console that raises BrokenPipeError to its caller; rich would end the process."""

    @override
    def on_broken_pipe(self) -> None:
        raise


def _page(page: Page) -> Iterator[RenderableType]:
    for number, section in enumerate(page.sections):
        body = list(_section(section))
        if not body:
            continue
        if number:
            yield ""
        if section.title:
            yield Text(section.title, style="bold")
        yield from (Padding(part, (0, 0, 0, 2)) if section.title else part for part in body)


def _section(section: Section) -> Iterator[RenderableType]:
    if section.pairs:
        grid = Table.grid(padding=(0, 1, 0, 0))
        for name, text in section.pairs:
            grid.add_row(Text(f"{name}:", style="dim"), _cell(text))
        yield grid
    if section.listing is not None and section.listing.rows:
        yield _table(section.listing, False)
    if section.lines:
        yield Text("\n".join(section.lines))


def _table(listing: Listing, is_wide: bool) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    shown = [number for number, column in enumerate(listing.columns) if is_wide or not column.is_wide]
    for number in shown:
        column = listing.columns[number]
        table.add_column(column.name.upper(), justify=column.align, overflow="fold")
    for row in listing.rows:
        table.add_row(*(_cell(row[number]) for number in shown))
    return table


def _cell(text: str) -> Text:
    return Text(one_line(text), style=_STYLES.get(text, ""))
