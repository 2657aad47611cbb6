"""The live view of a run: how far, how fast, which nodes, the last checkpoint, what happened lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from behemoth_cli.out.frame import Frame, Line, Span, Style
from behemoth_cli.out.table import one_line
from behemoth_cli.views.figures import age, clock, count, seconds, size
from behemoth_cli.views.status import step_of

if TYPE_CHECKING:
    from behemoth.app.events import Event
    from behemoth.app.snapshot import NodeView, Snapshot

MAX_EVENTS = 6
_MAX_NAMED_NODES = 12
"""Beyond these a node is one sign in the grid."""
_MAX_GRID_LINES = 8
_BAR_COLUMNS = 30
_SIGNS: dict[str, tuple[str, Style]] = {
    "working": ("#", "good"),
    "spare": ("o", "spare"),
    "late": ("?", "warn"),
    "coming": ("+", "warn"),
    "lost": ("x", "bad"),
    "released": (".", "dim"),
}
_PHASES: dict[str, Style] = {"training": "good", "succeeded": "good", "failed": "bad", "recovering": "warn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The recent rate of tokens, from several snapshots."""

    attempt: int = 0
    since_us: int = 0
    tokens: int = 0
    tokens_per_s: float | None = None


_PACE_US = 1_500_000


def paced(pace: Pace, snapshot: Snapshot) -> Pace:
    """The pace after one more snapshot; measured over about a second and a half of one attempt."""
    vitals = snapshot.vitals
    if vitals is None:
        return pace
    if vitals.attempt != pace.attempt:
        return Pace(attempt=vitals.attempt, since_us=snapshot.now_us, tokens=vitals.tokens)
    span_us = snapshot.now_us - pace.since_us
    if span_us < _PACE_US:
        return pace
    rate = (vitals.tokens - pace.tokens) / (span_us / 1e6)
    return Pace(attempt=pace.attempt, since_us=snapshot.now_us, tokens=vitals.tokens, tokens_per_s=rate)


def live_frame(snapshot: Snapshot, pace: Pace, events: Sequence[Event], *, width: int) -> Frame:
    """The whole view, in `width` columns where possible."""
    lines: list[Line] = [_head(snapshot), _progress(snapshot), _figures(snapshot, pace, events)]
    if snapshot.status.phase != "training":
        lines.append((Span(text=f"  {one_line(snapshot.status.message)}", style="warn"),))
    lines += _nodes(snapshot.nodes, width)
    lines += [_event(event) for event in events[-MAX_EVENTS:]]
    return Frame(lines=tuple(_cut(line, width) for line in lines))


def _head(snapshot: Snapshot) -> Line:
    status = snapshot.status
    elapsed = age((snapshot.now_us - snapshot.opened_us) / 1e6)
    return (
        Span(text=f"run/{snapshot.name} ", style="bold"),
        Span(text=status.phase, style=_PHASES.get(status.phase, "")),
        Span(text=f"  attempt {status.attempt}  {elapsed}", style="dim"),
    )


def _progress(snapshot: Snapshot) -> Line:
    step, total = step_of(snapshot), snapshot.total_steps
    filled = _BAR_COLUMNS * step // max(1, total)
    bar = "#" * filled + "." * (_BAR_COLUMNS - filled)
    left = seconds((total - step) * snapshot.step_us / 1e6) if snapshot.step_us and step < total else "-"
    return (Span(text=f"  step {step}/{total} [{bar}] {100 * step // max(1, total)}%  ETA {left}"),)


def _figures(snapshot: Snapshot, pace: Pace, events: Sequence[Event]) -> Line:
    vitals = snapshot.vitals
    loss = f"{vitals.loss:.4f}" if vitals is not None and vitals.loss is not None else "-"
    tokens = count(pace.tokens_per_s) if pace.tokens_per_s else "-"
    step_time = seconds(snapshot.step_us / 1e6) if snapshot.step_us else "-"
    text = f"  loss {loss}  tokens/s {tokens}  step time {step_time}  checkpoint {_checkpoint(snapshot, events)}"
    return (Span(text=text),)


def _checkpoint(snapshot: Snapshot, events: Sequence[Event]) -> str:
    commit = snapshot.status.commit
    if commit is None:
        return "-"
    committed_us = next((event.at_us for event in reversed(events) if event.reason == "Committed"), None)
    when = f", {age((snapshot.now_us - committed_us) / 1e6)} ago" if committed_us is not None else ""
    return f"step {commit.step} ({size(commit.size_bytes)}{when})"


def _nodes(nodes: Sequence[NodeView], width: int) -> list[Line]:
    if len(nodes) <= _MAX_NAMED_NODES:
        return [_named(node) for node in nodes]
    columns = max(10, width - 4)
    rows = [nodes[at : at + columns] for at in range(0, len(nodes), columns)]
    grid = [(Span(text="  "), *(_sign(node) for node in row)) for row in rows[:_MAX_GRID_LINES]]
    rest = [(Span(text=f"  ... {len(rows) - _MAX_GRID_LINES} lines more", style="dim"),)]
    return [*grid, *rest * (len(rows) > _MAX_GRID_LINES), _legend(nodes)]


def _named(node: NodeView) -> Line:
    sign = _sign(node)
    place = f"slot {node.slot}" if node.slot is not None else ""
    is_awaited = node.silent_us is not None and node.condition != "released"
    heard = f"heard {seconds((node.silent_us or 0) / 1e6)} ago" if is_awaited else ""
    parts = [part for part in (place, f"incarnation {node.incarnation}" * (node.incarnation > 1), heard) if part]
    condition = Span(text=f"{node.condition:9}", style=sign.style)
    return (Span(text="  "), sign, Span(text=f" {node.name:10} "), condition, Span(text=", ".join(parts), style="dim"))


def _sign(node: NodeView) -> Span:
    text, style = _SIGNS[node.condition]
    return Span(text=text, style=style)


def _legend(nodes: Sequence[NodeView]) -> Line:
    numbers = {condition: sum(node.condition == condition for node in nodes) for condition in _SIGNS}
    told = [f"{_SIGNS[condition][0]} {number} {condition}" for condition, number in numbers.items() if number]
    return (Span(text="  " + "  ".join(told), style="dim"),)


def _event(event: Event) -> Line:
    style: Style = "warn" if event.level == "warning" else ""
    return (
        Span(text=f"  {clock(event.at_us)[:8]} ", style="dim"),
        Span(text=f"{event.reason:12} ", style=style),
        Span(text=one_line(event.message)),
    )


def _cut(line: Line, width: int) -> Line:
    """A line cut to the width: a frame with wrapped lines cannot be redrawn in place."""
    room = width - 1
    kept: list[Span] = []
    for span in line:
        if room <= 0:
            break
        kept.append(span if len(span.text) <= room else Span(text=span.text[:room], style=span.style))
        room -= len(span.text)
    return tuple(kept)
