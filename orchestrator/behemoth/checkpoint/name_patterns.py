"""Shell patterns of array names, as intakes and readers take them.

Names without wildcards are looked up in a set, so that a list of thousands of them is cheap. Pure. Neighbours:
`matching`, `interop.stream` and `interop.relayout`; name maps have patterns of another kind (`interop.patterns`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase, translate

_WILD = re.compile(r"[*?\[]")


class NamePatterns:
    """Shell patterns, compared with whole names, case-sensitively."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        self._plain = frozenset(one for one in self._patterns if _WILD.search(one) is None)
        self._wild = [one for one in self._patterns if one not in self._plain]
        self._any_wild = re.compile("|".join(translate(one) for one in self._wild) or r"(?!)")

    def has(self, name: str) -> bool:
        """Whether any pattern matches the name."""
        return name in self._plain or self._any_wild.match(name) is not None

    def unused(self, names: Collection[str]) -> list[str]:
        """The patterns that match none of these names, in their order."""
        known = frozenset(names)
        wild = {one for one in self._wild if not any(fnmatchcase(name, one) for name in names)}
        return [one for one in self._patterns if one in wild or (one in self._plain and one not in known)]
