"""Lists of ranks as operators write them."""

from __future__ import annotations

import re

from behemoth.base.errors import Invalid


def parse_ranks(text: str, *, option: str) -> frozenset[int] | None:
    """`0-3,7` as a set; None for an empty text, which stands for all. Raises Invalid naming the option."""
    if not text:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", part.strip())
        first, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if end < first:
            hint = "write ranks as 0-3,7"
            raise Invalid(f"option {option}: expected a list of ranks, got {text!r}", hint=hint, code="rank-list")
        found.update(range(first, end + 1))
    return frozenset(found)
