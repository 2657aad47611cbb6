"""Lines of many ranks as one stream: equal lines are shown once, with the list of their ranks, as dshbak does.

Output of programs has no times, so the order between ranks follows from the text: a line waits for ranks that have
yet to come to it, as far as they come to it within `WINDOW` lines. Each rank's own order is always kept.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from behemoth_cli.views.figures import ranks

WINDOW = 64
"""Lines to look ahead; ranks of one program seldom drift further apart."""

Shared = tuple[tuple[int, ...], str]
"""Ranks in order, and the line that each of them said."""


def merged(lines_of: Mapping[int, Sequence[str]]) -> Iterator[Shared]:
    """Every line of every rank exactly once, those that are alike and meet told together."""
    tails = {rank: _Tail(lines) for rank, lines in sorted(lines_of.items()) if lines}
    while tails:
        line = _next_line(tails)
        speakers = tuple(rank for rank, tail in tails.items() if tail.head == line)
        yield speakers, line
        for rank in speakers:
            if not tails[rank].advance():
                del tails[rank]


def log_lines(shared: Sequence[Shared] | Iterator[Shared], *, width: int) -> Iterator[str]:
    """As text: the ranks in brackets, `width` columns for them; 0 leaves them out."""
    for speakers, line in shared:
        yield f"{f'[{ranks(speakers)}]':{width}} {line}" if width else line


def label_width(numbers: Sequence[int]) -> int:
    """Columns for the longest usual label: 0 for a single rank, which needs none."""
    return len(f"[{ranks(numbers)}]") if len(numbers) > 1 else 0


def last(lines: Sequence[str], count: int | None) -> Sequence[str]:
    """The newest `count` lines; all of them for None."""
    return lines if count is None else lines[max(0, len(lines) - count) :]


class _Tail:
    """What a rank has yet to say; `ahead` counts the lines behind the head within the window."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = deque(lines)
        self.head = self._lines.popleft()
        self.ahead = Counter(self._lines[number] for number in range(min(WINDOW, len(self._lines))))

    def advance(self) -> bool:
        """False at the end."""
        if not self._lines:
            return False
        self.head = self._lines.popleft()
        self.ahead[self.head] -= 1
        if len(self._lines) >= WINDOW:
            self.ahead[self._lines[WINDOW - 1]] += 1
        return True


def _next_line(tails: Mapping[int, _Tail]) -> str:
    """The first line that nobody else is on the way to; that of the lowest rank when all are waited for."""
    heads: dict[str, list[_Tail]] = {}
    for tail in tails.values():
        heads.setdefault(tail.head, []).append(tail)
    if len(heads) == 1:
        return next(iter(heads))
    ahead: Counter[str] = Counter()
    for tail in tails.values():
        for head in heads:
            ahead[head] += tail.ahead.get(head, 0) > 0 and tail.head != head
    return next((head for head in heads if not ahead[head]), next(iter(heads)))
