"""Events of a run as lines and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, one_line
from behemoth_cli.views.figures import clock

if TYPE_CHECKING:
    from behemoth.app.events import Event
    from behemoth.fleet.progress import Vitals


def event_line(event: Event, vitals: Vitals | None = None) -> str:
    """One line for a pipe: time of day (UTC), where the run stood, what happened. A commit also tells the loss of the
    latest `vitals`, with their step: a pipe has no other place for it."""
    mark = "!" if event.level == "warning" else " "
    where = f"{clock(event.at_us)} {mark} attempt {event.attempt} step {event.step}"
    return f"{where}: {event.reason}: {one_line(event.message)}{_loss(event, vitals)}"


def _loss(event: Event, vitals: Vitals | None) -> str:
    if vitals is None or vitals.loss is None:
        return ""
    if event.reason != "Committed" or vitals.attempt != event.attempt:
        return ""
    return f"; loss {vitals.loss:.4f} at step {vitals.step}"


def event_listing(events: Sequence[Event]) -> Listing:
    """Newest last, as they happened."""
    return Listing(
        kind="EventList",
        columns=(
            Column(name="time"),
            Column(name="attempt", align="right"),
            Column(name="step", align="right"),
            Column(name="reason"),
            Column(name="message"),
        ),
        rows=tuple(
            (clock(event.at_us), str(event.attempt), str(event.step), event.reason, one_line(event.message))
            for event in events
        ),
    )


def event_item(event: Event) -> dict[str, object]:
    """An event as a document."""
    return {
        "atUs": event.at_us,
        "level": event.level,
        "reason": event.reason,
        "message": event.message,
        "attempt": event.attempt,
        "step": event.step,
        "node": event.node,
        "rank": event.rank,
    }
