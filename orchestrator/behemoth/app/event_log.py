"""`events.jsonl`: the events of a run, one JSON document a line, and whoever wants to hear of them at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from behemoth.app.events import Event, events_of, warning
from behemoth.base.clock import Clock
from behemoth.base.ids import NodeId
from behemoth.state.evidence import Evidence
from behemoth.state.observation import Observation


class EventLog:
    """A witness of the loop. `listener` is called on the loop's thread with each event, after it is written."""

    def __init__(self, path: Path, *, clock: Clock, listener: Callable[[Event], None]) -> None:
        self._path = path
        self._clock = clock
        self._listener = listener
        self._file: BinaryIO | None = None
        self._observation: Observation | None = None

    def open(self) -> None:
        """Appends to what is there; a line cut off by a crash is closed first."""
        self._file = self._path.open("ab")
        if self._file.tell() and not self._path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        self._observation = after
        for event in events_of(evidence, before, after):
            self._write(event)

    def warn(self, reason: str, message: str, *, node: NodeId | None = None) -> None:
        """What the loop does not see; on the loop's thread."""
        self._write(warning(reason, message, at_us=self._clock.now_us(), observation=self._observation, node=node))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode(event) + b"\n")
            self._file.flush()
        self._listener(event)


def read_events(path: Path) -> list[Event]:
    """All whole lines; what a crash cut off is left out."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(Event)
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(decoder.decode(line))
        except msgspec.DecodeError:
            continue
    return events
