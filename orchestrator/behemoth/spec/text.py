"""Reads YAML (or JSON, a subset) into plain values, with the place of every field.

Strict where YAML is generous, because kubectl, PyYAML and we must take one file for one thing: no duplicate keys,
anchors, tags or second document; a plain word that YAML 1.1 and 1.2 read differently (`on`, `010`, `1:30`, `1_000`) is
kept as Ambiguous for the decoder to refuse. Size and depth are bounded. No meaning is attached here; the neighbour that
does is `behemoth.spec.decode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from behemoth.spec.problem import InvalidRun, Mark, Problem

MAX_TEXT_BYTES = 256 * 1024
MAX_DEPTH = 16
_LONGEST_NUMBER = 40
_SYNTAX_HINT = (
    "look at that place and the line before: indent with spaces, close brackets and quotes, and quote text that holds "
    "`: ` or ` #`"
)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_AMBIGUOUS = (
    (re.compile(r"(?i:yes|no|on|off)"), "true or false"),
    (re.compile(r"[-+]?0[0-9]+"), "an octal number"),
    (re.compile(r"[-+]?0[ob][0-7]+"), "an octal or binary number"),
    (re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"), "a number to the base of 60"),
    (re.compile(r"[-+]?(0x)?[0-9a-fA-F]*[0-9][0-9a-fA-F_]*_[0-9a-fA-F_]*(\.[0-9_]*)?"), "a number"),
)
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguous:
    """A plain word that some YAML readers take for something other than text."""

    text: str
    reading: str

    def __str__(self) -> str:
        return f"{self.text}, which some YAML readers take for {self.reading}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A tree of dict, list, str, int, float, bool, None and Ambiguous; `marks` has the place of each field path."""

    value: object
    marks: dict[str, Mark] = field(default_factory=dict)


def read_document(text: str | bytes, *, source: str) -> Document:
    """Parse one YAML document. Raises InvalidRun with the place of what is malformed."""
    decoded = _decoded(text, source)
    builder = _Builder(yaml.parse(decoded, Loader=yaml.SafeLoader), source)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = (at.line + 1, at.column + 1) if at else None
        reason = f"expected well-formed YAML, got: {error.problem or error.context}"
        raise InvalidRun(
            [Problem(path="", reason=reason, hint=_SYNTAX_HINT, code="yaml-syntax", mark=mark)], source
        ) from error
    except yaml.YAMLError as error:
        reason = f"expected well-formed YAML, got: {' '.join(str(error).split())}"
        raise InvalidRun([Problem(path="", reason=reason, hint=_SYNTAX_HINT, code="yaml-syntax")], source) from error


def join_path(path: str, key: str) -> str:
    """The path of a field below `path`; names that are no plain words are quoted."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        return f"{path}[{key!r}]"
    return f"{path}.{key}" if path else key


def _decoded(text: str | bytes, source: str) -> str:
    size_bytes = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_TEXT_BYTES:
        reason = f"expected at most {MAX_TEXT_BYTES} bytes, got {size_bytes}"
        raise InvalidRun([Problem(path="", reason=reason, code="yaml-size")], source)
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"expected UTF-8 text, got byte 0x{text[error.start]:02x} at offset {error.start}"
        raise InvalidRun(
            [Problem(path="", reason=reason, hint="save the file as UTF-8", code="yaml-encoding")], source
        ) from error


class _Builder:
    """Builds values straight from the parser's events, so that an alias can be refused before it is expanded."""

    def __init__(self, events: Iterator[yaml.Event], source: str) -> None:
        self._events = events
        self._source = source
        self._marks: dict[str, Mark] = {}

    def document(self) -> Document:
        next(self._events)
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            raise self._refusal("", start, "expected a run, got an empty document", "yaml-empty")
        value = self._value(next(self._events), "", 0)
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._refusal("", after, "expected one document, got a second one", "yaml-documents")
        return Document(value=value, marks=self._marks)

    def _value(self, event: yaml.Event, path: str, depth: int) -> object:
        self._marks.setdefault(path, _mark(event))
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._refusal(path, event, "expected no anchors and aliases, got one", "yaml-alias")
        if getattr(event, "tag", None) is not None:
            reason = f"expected no tags, got {event.tag!r}"  # type: ignore[attr-defined]
            raise self._refusal(path, event, reason, "yaml-tag")
        if depth > MAX_DEPTH:
            raise self._refusal(path, event, f"expected at most {MAX_DEPTH} levels, got more", "yaml-depth")
        match event:
            case yaml.MappingStartEvent():
                return self._mapping(path, depth)
            case yaml.SequenceStartEvent():
                return self._sequence(path, depth)
            case _:
                assert isinstance(event, yaml.ScalarEvent)
                return _scalar(event.value) if event.style is None else event.value

    def _mapping(self, path: str, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            below = join_path(path, key)
            if key in values:
                reason = f"expected the field once, got it again (first on line {self._marks[below][0]})"
                raise self._refusal(below, event, reason, "yaml-duplicate")
            self._marks[below] = _mark(event)
            values[key] = self._value(next(self._events), below, depth + 1)
        return values

    def _key(self, event: yaml.Event, path: str) -> str:
        plain = isinstance(event, yaml.ScalarEvent) and event.anchor is None and event.tag is None
        if not plain:
            raise self._refusal(path, event, "expected text as the name of a field, got something else", "yaml-key")
        return str(event.value)  # type: ignore[attr-defined]

    def _sequence(self, path: str, depth: int) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, f"{path}[{len(values)}]", depth + 1))
        return values

    def _refusal(self, path: str, event: yaml.Event, reason: str, code: str) -> InvalidRun:
        return InvalidRun([Problem(path=path, reason=reason, code=code, mark=_mark(event))], self._source)


def _mark(event: yaml.Event) -> Mark:
    mark = event.start_mark
    assert mark is not None
    return (mark.line + 1, mark.column + 1)


def _scalar(text: str) -> object:
    """A plain word by the core schema of YAML 1.2, long digits left as text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    for pattern, reading in _AMBIGUOUS:
        if pattern.fullmatch(text):
            return Ambiguous(text=text, reading=reading)
    if _INTEGER.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
