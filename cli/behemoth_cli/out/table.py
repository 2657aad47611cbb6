"""Rows and columns as text, in the manner of kubectl: upper-case heads, two spaces between, never cut.

Plain text only: what a terminal adds (bold heads, wrapping) is `behemoth_cli.out.console`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Align = Literal["left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`is_wide`: shown with `-o wide` only."""

    name: str
    align: Align = "left"
    is_wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Things of one kind. `items` are the same rows as documents, `names` as `type/name`, all in one order."""

    kind: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    items: tuple[Mapping[str, object], ...] = ()
    names: tuple[str, ...] = ()
    empty: str = ""
    """Printed to stderr when there is no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled part of a page: lines of its own, pairs, a table, or several of them."""

    title: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    listing: Listing | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One object on one screen; `body` is the same as a document."""

    kind: str
    sections: tuple[Section, ...]
    body: Mapping[str, object] = field(default_factory=dict)
    name: str = ""


def table_lines(listing: Listing, *, is_wide: bool = False) -> list[str]:
    """The head and one line a row; nothing for no rows."""
    if not listing.rows:
        return []
    shown = [number for number, column in enumerate(listing.columns) if is_wide or not column.is_wide]
    columns = [listing.columns[number] for number in shown]
    rows = [[one_line(row[number]) for number in shown] for row in listing.rows]
    return columns_lines([[column.name.upper() for column in columns], *rows], [column.align for column in columns])


def columns_lines(rows: Sequence[Sequence[str]], aligns: Sequence[Align]) -> list[str]:
    """Cells under each other; no line ends in blanks."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(aligns))]
    return ["  ".join(map(_padded, row, widths, aligns)).rstrip() for row in rows]


def page_lines(page: Page) -> list[str]:
    """Sections with an empty line between."""
    lines: list[str] = []
    for section in page.sections:
        found = section_lines(section)
        if found and lines:
            lines.append("")
        lines += found
    return lines


def section_lines(section: Section) -> list[str]:
    """Title, pairs, table, lines; a section with a title and nothing below it is left out."""
    body = [*_pairs(section.pairs)]
    body += table_lines(section.listing) if section.listing is not None else []
    body += section.lines
    if not body:
        return []
    return [section.title, *(f"  {line}" if line else "" for line in body)] if section.title else body


def one_line(text: str) -> str:
    """A text as one line without control characters, which a program may have printed."""
    return text if text.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0) + 1
    return [f"{name + ':':{width}} {one_line(text)}".rstrip() for name, text in pairs]


def _padded(cell: str, width: int, align: Align) -> str:
    return cell.rjust(width) if align == "right" else cell.ljust(width)
