"""A picture of text: lines of spans, each with a style by name. Values only; `live` draws them, views make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Style = Literal["", "bold", "dim", "good", "warn", "bad", "spare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    text: str
    style: Style = ""


Line: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture, top to bottom."""

    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """Without styles."""
        return "\n".join("".join(span.text for span in line) for line in self.lines)
