"""Makes a TrainingRun from text, and refuses everything that it does not understand.

Each field is held to its kind, and all problems are reported at once; rules between fields follow in
`behemoth.spec.run` when every field by itself is right. Nothing is guessed, converted or ignored.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Final, assert_never

from behemoth.base.errors import Invalid
from behemoth.spec.field import (
    LARGEST_INTEGER,
    LONGEST_TEXT,
    Choice,
    Field,
    Integer,
    Kind,
    Listing,
    Notation,
    OneOf,
    Scalar,
    Section,
    Table,
    Text,
    expected,
    misfit,
    shown,
)
from behemoth.spec.problem import InvalidRun, Mark, Problem, placed
from behemoth.spec.run import TrainingRun
from behemoth.spec.schema import nearest_path, root_section
from behemoth.spec.text import Ambiguous, join_path, read_document

MAX_ITEMS = 10_000


class _Refused:
    """Stands for a value whose problem has been noted."""


_REFUSED: Final = _Refused()


def decode_run(text: str | bytes, *, source: str = "run file") -> TrainingRun:
    """Read a run file: YAML or JSON, at most 256 KiB.

    `source` names the text in messages. Raises InvalidRun, an Invalid, with all problems, each with its field path and
    its line.
    """
    document = read_document(text, source=source)
    return decode_document(document.value, source=source, marks=document.marks)


def decode_document(document: object, *, source: str = "run", marks: Mapping[str, Mark] | None = None) -> TrainingRun:
    """Read a run from plain values, such as `to_document` gives or a Kubernetes object holds. Raises InvalidRun."""
    decoder = _Decoder()
    run = decoder.value(root_section(), document, "")
    if decoder.problems:
        raise InvalidRun([placed(problem, marks or {}) for problem in decoder.problems], source)
    assert isinstance(run, TrainingRun)
    return run


class _Decoder:
    """Collects problems on its way through one document."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def value(self, kind: Kind, raw: object, path: str) -> object:
        """The value of a field, or _REFUSED after noting why."""
        match kind:
            case Integer() | Choice() | Text():
                return self._single(kind, raw, path)
            case Notation():
                return self._notation(kind, raw, path)
            case Scalar():
                return self._scalar(kind, raw, path)
            case Listing():
                return self._listing(kind, raw, path)
            case Table():
                return self._table(kind, raw, path)
            case Section():
                return self._section(kind, raw, path)
            case OneOf():
                return self._one_of(kind, raw, path)
            case _:
                assert_never(kind)

    def _single(self, kind: Integer | Choice | Text, raw: object, path: str) -> object:
        reason = misfit(kind, raw)
        if not reason:
            return raw
        return self._refuse(path, reason, _single_hint(kind, raw), _single_code(kind, raw))

    def _notation(self, kind: Notation, raw: object, path: str) -> object:
        text = raw.text if isinstance(raw, Ambiguous) else raw
        if isinstance(text, int | float) and not isinstance(text, bool) and kind.unit in ("time", "bytes"):
            unit = "s" if kind.unit == "time" else "B"
            reason = f"expected {kind.what}, got {shown(text)} without a unit"
            hint = kind.zero_hint if not text and kind.zero_hint else f"did you mean {text}{unit}?"
            return self._refuse(path, reason, hint, "missing-unit")
        if not isinstance(text, str):
            return self._refuse(path, f"expected {kind.what}, got {shown(text)}", "", "wrong-type")
        try:
            return kind.read(text, name=path)
        except Invalid as error:
            return self._refuse(path, error.message.removeprefix(f"{path}: "), error.hint, error.code)

    def _scalar(self, kind: Scalar, raw: object, path: str) -> object:
        match raw:
            case bool():
                return raw
            case int() if abs(raw) <= LARGEST_INTEGER:
                return raw
            case float() if math.isfinite(raw):
                return raw
            case str() if len(raw) <= LONGEST_TEXT:
                return raw
            case _:
                hint = _quote_hint(raw) if isinstance(raw, Ambiguous) else ""
                return self._refuse(path, f"expected {expected(kind)}, got {shown(raw)}", hint, "wrong-type")

    def _listing(self, kind: Listing, raw: object, path: str) -> object:
        if not isinstance(raw, list | tuple) or len(raw) < kind.min_items:
            hint = f"a list of one item is written [{raw}]" if isinstance(raw, str) and len(raw) < 80 else ""
            return self._refuse(path, f"expected {expected(kind)}, got {shown(raw)}", hint, "wrong-type")
        if len(raw) > MAX_ITEMS:
            return self._refuse(path, f"expected at most {MAX_ITEMS} items, got {len(raw)}", "", "out-of-range")
        values = [self.value(kind.item, entry, f"{path}[{index}]") for index, entry in enumerate(raw)]
        return _REFUSED if _REFUSED in values else tuple(values)

    def _table(self, kind: Table, raw: object, path: str) -> object:
        if not isinstance(raw, dict):
            return self._refuse(path, f"expected {expected(kind)}, got {shown(raw)}", "", "wrong-type")
        values: dict[str, object] = {}
        for name, entry in raw.items():
            below = join_path(path, str(name))
            reason = _name_misfit(kind, name)
            values[str(name)] = (
                self._refuse(below, reason, "", "wrong-name") if reason else self.value(kind.value, entry, below)
            )
        return _REFUSED if _REFUSED in values.values() else values

    def _one_of(self, kind: OneOf, raw: object, path: str) -> object:
        if not isinstance(raw, dict):
            return self._refuse(
                path, f"expected {expected(kind)}, got {shown(raw)}", _tag_hint(kind, raw), "wrong-type"
            )
        named = [section for section in kind.sections if section.fields[0].name in raw]
        if len(named) == 1:
            return self._section(named[0], raw, path, forms=kind)
        got = " and ".join(section.fields[0].name for section in named) or "neither"
        if not named:
            known = {field.name for section in kind.sections for field in section.fields}
            self._note_unknown([name for name in raw if name not in known], sorted(known), path)
        reason = f"expected exactly one of {', '.join(kind.tags)}, got {got}"
        return self._refuse(path, reason, "", "one-of")

    def _section(self, kind: Section, raw: object, path: str, *, forms: OneOf | None = None) -> object:
        if not isinstance(raw, dict):
            return self._refuse(path, f"expected {expected(kind)}, got {shown(raw)}", "", "wrong-type")
        before = len(self.problems)
        self._note_strangers(kind, raw, path, forms)
        values = {field.name: self._field(field, raw, path) for field in kind.fields if _is_told(field, raw)}
        if len(self.problems) > before:
            return _REFUSED
        try:
            return kind.build(**(kind.complete(values) if kind.complete else values))
        except InvalidRun as error:
            self.problems.extend(error.problems)
        except Invalid as error:
            subject, _, reason = error.message.partition(": ")
            self._refuse(f"{path.rpartition('.')[0]}.{subject}", reason, error.hint, error.code)
        return _REFUSED

    def _field(self, field: Field, raw: Mapping[str, object], path: str) -> object:
        below = join_path(path, field.name)
        if field.name not in raw:
            hint = f"`behemoth explain {below}` tells what it takes"
            return self._refuse(below, f"expected {expected(field.kind)}, got nothing", hint, "missing-field")
        value = self.value(field.kind, raw[field.name], below)
        if field.supported or value is _REFUSED or value == field.default:
            return value
        reason = f"expected it left out, got {shown(raw[field.name])}: not supported yet"
        return self._refuse(below, reason, "leave the field out", "not-supported-yet")

    def _note_strangers(self, kind: Section, raw: Mapping[str, object], path: str, forms: OneOf | None) -> None:
        """Fields that this section does not have; those of another form of it are told apart."""
        names = [field.name for field in kind.fields]
        strangers = [name for name in raw if name not in names]
        misplaced = {
            name: section.fields[0].name
            for section in (forms.sections if forms else ())
            for name in strangers
            if section.field(name)
        }
        for name, tag in misplaced.items():
            reason = f"expected it only with {tag}, got it with {names[0]}"
            self._refuse(join_path(path, name), reason, "", "one-of")
        self._note_unknown([name for name in strangers if name not in misplaced], names, path)

    def _note_unknown(self, strangers: list[str], names: list[str], path: str) -> None:
        for name in strangers:
            below = join_path(path, str(name))
            reason = f"expected one of {', '.join(names)}, got an unknown field"
            self._refuse(below, reason, nearest_path(f"{path}.{name}" if path else str(name)), "unknown-field")

    def _refuse(self, path: str, reason: str, hint: str, code: str) -> _Refused:
        self.problems.append(Problem(path=path, reason=reason, hint=hint, code=code))
        return _REFUSED


def _is_told(field: Field, raw: Mapping[str, object]) -> bool:
    return field.required or field.name in raw


def _name_misfit(kind: Table, name: object) -> str:
    if not isinstance(name, str) or len(name) > LONGEST_TEXT or not re.fullmatch(kind.key_pattern, name):
        return f"expected {kind.key_what} such as EXAMPLE_1, got {shown(name)}"
    return kind.refuse(name) if kind.refuse else ""


def _single_hint(kind: Integer | Choice | Text, raw: object) -> str:
    if isinstance(kind, Text) and not isinstance(raw, str):
        return _quote_hint(raw)
    if isinstance(kind, Integer) and isinstance(raw, str) and re.fullmatch(r"[0-9]{1,18}", raw):
        return f"write {int(raw)} without quotes"
    if isinstance(kind, Integer) and isinstance(raw, Ambiguous) and raw.text.replace("_", "").isdigit():
        return f"write {int(raw.text.replace('_', ''))}"
    if not isinstance(raw, str):
        return ""
    match kind:
        case Text(suggest=suggest):
            guess = suggest(raw) if suggest and len(raw) <= LONGEST_TEXT else ""
        case Choice(refused=refused) if raw in refused:
            return refused[raw]
        case Choice(names=names):
            guess = next(iter(difflib.get_close_matches(raw.lower().replace("_", "-"), names, n=1, cutoff=0.4)), "")
        case Integer():
            guess = ""
    return f"did you mean {guess}?" if guess else ""


def _quote_hint(raw: object) -> str:
    match raw:
        case Ambiguous(text=text):
            return f"for text, quote it: '{text}'"
        case bool() | int() | float():
            return f"quote it: '{str(raw).lower() if isinstance(raw, bool) else raw}'"
        case _:
            return ""


def _single_code(kind: Integer | Choice | Text, raw: object) -> str:
    right_type = (
        isinstance(raw, int) and not isinstance(raw, bool) if isinstance(kind, Integer) else isinstance(raw, str)
    )
    if not right_type:
        return "wrong-type"
    return "out-of-range" if isinstance(kind, Integer) else "unknown-name" if isinstance(kind, Choice) else "pattern"


def _tag_hint(kind: OneOf, raw: object) -> str:
    """A bare value was probably meant for the first form that takes it."""
    if not isinstance(raw, str | int) or isinstance(raw, bool) or len(str(raw)) >= 80:
        return ""
    for section in kind.sections:
        reader = _Decoder()
        reader.value(section.fields[0].kind, raw, "")
        if not reader.problems:
            return f"did you mean {{{section.fields[0].name}: {raw}}}?"
    return ""
