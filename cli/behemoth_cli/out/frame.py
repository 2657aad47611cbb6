"""A frame of styled text: lines of spans, each with the name of a style. Values only; `live` draws them, views make
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Style = Literal["", "bold", "dim", "good", "warn", "bad", "spare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Text of one style, within a line."""

    text: str
    style: Style = ""


Line: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame, top to bottom."""

    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The text without styles."""
        return "\n".join("".join(span.text for span in line) for line in self.lines)
