"""The lines of a run's journal: one fact and its time each, as JSON; folding them again gives the same effects.

Encoding only, no file is touched. A last line without its newline was torn by a crash and never counted; anything
else that does not decode is damage and is told with its line number. Neighbour: `behemoth.app`, which owns the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from behemoth.base.decoding import UNDECODABLE, told
from behemoth.base.errors import Corrupt
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.state.effect import Effect
from behemoth.state.evidence import Decided, Evidence
from behemoth.state.observation import Observation


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fact and when it was folded, in microseconds."""

    now_us: int
    evidence: Evidence


class TornLine(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a journal whose writer died in the middle of a line: cut the file at `offset_bytes`, lose nothing."""

    offset_bytes: int
    num_bytes: int


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """A line at which this program decides otherwise than the one that wrote the journal."""

    line_number: int
    recorded: tuple[Effect, ...]
    decided: tuple[Effect, ...]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Line)


def encode_line(now_us: int, evidence: Evidence) -> bytes:
    """One line with its newline; the same fact gives the same bytes."""
    return _ENCODER.encode(Line(now_us=now_us, evidence=evidence)) + b"\n"


def decode_lines(data: bytes) -> Iterator[Line | TornLine]:
    """Every line in order; a TornLine can only be the last. Raises Corrupt with the line number for anything else."""
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            yield TornLine(offset_bytes=start, num_bytes=len(data) - start)
            return
        number += 1
        yield _decode(data[start:end], number)
        start = end + 1


def _decode(line: bytes, number: int) -> Line:
    try:
        return _DECODER.decode(line)
    except UNDECODABLE as error:
        hint = "restore the journal from a copy, or start a new run directory from its checkpoints"
        raise Corrupt(f"journal line {number}: expected a fact, got: {told(error)}", hint=hint) from error


def replay(lines: Iterable[Line | TornLine]) -> Observation | None:
    """What a journal says; None for an empty one."""
    obs: Observation | None = None
    for line in lines:
        if isinstance(line, Line):
            obs = fold(obs, line.evidence, line.now_us)
    return obs


def effects_of(lines: Iterable[Line | TornLine]) -> Iterator[tuple[int, tuple[Effect, ...]]]:
    """The decisions that this program takes at each Decided line, with the number of the line."""
    for number, _, decided in _decisions(lines):
        yield number, decided


def audit(lines: Iterable[Line | TornLine]) -> list[Mismatch]:
    """Where this program decides otherwise than was recorded, byte for byte; empty for a faithful replay."""
    return [
        Mismatch(line_number=number, recorded=recorded, decided=decided)
        for number, recorded, decided in _decisions(lines)
        if _ENCODER.encode(recorded) != _ENCODER.encode(decided)
    ]


def _decisions(lines: Iterable[Line | TornLine]) -> Iterator[tuple[int, tuple[Effect, ...], tuple[Effect, ...]]]:
    obs: Observation | None = None
    for number, line in enumerate(lines, start=1):
        if isinstance(line, TornLine):
            return
        if obs is not None and isinstance(line.evidence, Decided):
            yield number, line.evidence.effects, decide(obs).effects
        obs = fold(obs, line.evidence, line.now_us)
