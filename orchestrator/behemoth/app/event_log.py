"""`events.jsonl`: the events of a run, one JSON document a line; each is also passed to a listener at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import SEEK_END, RawIOBase
from pathlib import Path

import msgspec

from behemoth.app.events import Event, events_of, warning
from behemoth.app.run_directory import refusal
from behemoth.base.clock import Clock
from behemoth.base.decoding import UNDECODABLE
from behemoth.base.ids import NodeId
from behemoth.state.evidence import Evidence
from behemoth.state.observation import Observation

_log = logging.getLogger(__name__)


class EventLog:
    """A witness of the loop. `listener` is called on the loop's thread with each event, after it is written."""

    def __init__(self, path: Path, *, clock: Clock, listener: Callable[[Event], None]) -> None:
        self._path = path
        self._clock = clock
        self._listener = listener
        self._file: RawIOBase | None = None
        self._is_torn = False
        self._observation: Observation | None = None

    def open(self) -> None:
        """Appends to what is there; a line cut off by a crash is closed first."""
        try:
            self._file = self._path.open("a+b", buffering=0)
            self._is_torn = _is_cut_off(self._file)
        except OSError as error:
            raise refusal(self._path, "append to it", error) from error

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        self._observation = after
        for event in events_of(evidence, before, after):
            self._write(event)

    def warn(self, reason: str, message: str, *, node: NodeId | None = None) -> None:
        """Write a warning about something that is not evidence. Call it on the loop's thread."""
        self._write(warning(reason, message, at_us=self._clock.now_us(), observation=self._observation, node=node))

    def note(self, reason: str, message: str, *, node: NodeId | None = None) -> None:
        """As `warn`, at level `normal`."""
        told = warning(reason, message, at_us=self._clock.now_us(), observation=self._observation, node=node)
        self._write(msgspec.structs.replace(told, level="normal"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is not None:
            self._append(self._file, msgspec.json.encode(event) + b"\n")
        self._listener(event)

    def _append(self, file: RawIOBase, line: bytes) -> None:
        """Never raises: without space on the disk, events still reach the listener but are not kept, and the run goes
        on."""
        line = b"\n" + line if self._is_torn else line
        try:
            written = file.write(line) or 0
        except OSError as error:
            _log.warning("events %s: %s", self._path, error)
            return
        self._is_torn = 0 < written < len(line)


def _is_cut_off(file: RawIOBase) -> bool:
    if file.tell() == 0:
        return False
    file.seek(-1, SEEK_END)
    return file.read(1) != b"\n"


def read_events(path: Path) -> list[Event]:
    """All events of the file, none when it is missing. Lines that cannot be decoded, such as one that a crash cut off,
    are skipped: the file is for people."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(Event)
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(decoder.decode(line))
        except UNDECODABLE:
            continue
    return events
