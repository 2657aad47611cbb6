"""How a field of the run file is described: one description, from which decoding, `explain`, the reference and the
later CRD schema are all derived.

A dataclass of the run annotates each field with an `About`; `section` collects them. The kinds below are a closed
union: who handles a kind matches on all of them. Nothing here reads a text; that is `behemoth.spec.decode`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, assert_never, get_type_hints

from behemoth.base.errors import Invalid
from behemoth.base.units import (
    DURATION_EXAMPLES,
    DURATION_PATTERN,
    SIZE_EXAMPLES,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)

LONGEST_TEXT = 4096
LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text that matches `pattern` whole; `suggest` turns a wrong one into the nearest right one, or into nothing."""

    what: str
    pattern: str
    suggest: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """A value with a spelling of its own. `read(text, name=path)` raises Invalid; `write` gives a text that reads back.

    `write` takes Any because a field's kind and its value meet only at run time. `zero_hint`: what to write instead of
    0, where that is refused.
    """

    what: str
    pattern: str
    unit: str
    read: Callable[..., object]
    write: Callable[[Any], str]
    zero_hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    minimum: int
    maximum: int = LARGEST_INTEGER


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of `names`. `refused` are names that somebody may well try, each with the reason why it is none of them."""

    names: tuple[str, ...]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """Text, a whole number, a finite number, or true and false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    item: Kind
    min_items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Free names to values. `refuse` says why a name is not allowed, or gives an empty text."""

    value: Kind
    key_what: str
    key_pattern: str
    refuse: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Named fields, from which `build` makes the value. `complete` fills in defaults that depend on other fields."""

    fields: tuple[Field, ...]
    build: Callable[..., object]
    complete: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """Exactly one of several sections; the first field of each, which no other has, tells which one is meant."""

    sections: tuple[Section, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(section.fields[0].name for section in self.sections)


Kind: TypeAlias = Text | Notation | Integer | Choice | Scalar | Listing | Table | Section | OneOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field: what it is called, means, takes, and is when nobody writes it."""

    name: str
    doc: str
    kind: Kind
    required: bool
    default: object
    """None where there is no value unless one is written."""
    supported: bool
    """False: part of the schema, but nothing acts on it yet; refused unless it equals the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The annotation of a dataclass field that makes it a field of the run."""

    doc: str
    kind: Kind
    supported: bool = True


def duration(*, minimum: timedelta = timedelta(0)) -> Notation:
    """A duration of at least `minimum`."""
    bound = f" of at least {format_duration(minimum)}" if minimum else ""

    def read(text: str, *, name: str) -> timedelta:
        value = parse_duration(text, name=name)
        if value < minimum:
            raise Invalid(f"{name}: expected a duration{bound}, got {format_duration(value)}", code="out-of-range")
        return value

    what = f"a duration{bound} such as {DURATION_EXAMPLES}"
    return Notation(what=what, pattern=DURATION_PATTERN, unit="time", read=read, write=format_duration)


def size() -> Notation:
    """A size in bytes."""
    what = f"a size such as {SIZE_EXAMPLES}"
    return Notation(what=what, pattern=SIZE_PATTERN, unit="bytes", read=parse_size, write=format_size)


def rate_limit() -> Notation:
    """Bytes a second, at least one, where no limit is told by leaving the field out."""
    hint = "leave it out for no limit"
    what = f"a size such as {SIZE_EXAMPLES}"
    read = partial(parse_rate, hint=hint)
    return Notation(what=what, pattern=SIZE_PATTERN, unit="bytes", read=read, write=format_size, zero_hint=hint)


def section(cls: type, *, complete: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None) -> Section:
    """The section that a dataclass describes: its annotated fields, in order."""
    return Section(fields=fields_of(cls), build=cls, complete=complete)


def fields_of(cls: type) -> tuple[Field, ...]:
    """The annotated fields of a dataclass; others are no fields of the run file."""
    hints = get_type_hints(cls, include_extras=True)
    described = ((member, getattr(hints[member.name], "__metadata__", ())) for member in dataclasses.fields(cls))
    return tuple(_field(member, about) for member, (about,) in ((m, meta) for m, meta in described if meta))


def require_ranges(value: object, *, name: str) -> None:
    """Hold a value that was built by hand to the ranges and patterns of its annotations.

    Raises Invalid whose message opens with `name` and the field's own name.
    """
    assert dataclasses.is_dataclass(value)
    for field in fields_of(type(value)):
        held = getattr(value, field.name)
        reason = misfit(field.kind, held) if field.required or held is not None else ""
        if reason:
            raise Invalid(f"{name}.{field.name}: {reason}", code="out-of-range")


def misfit(kind: Kind, value: object) -> str:
    """Why a single value does not fit a kind, as `expected ..., got ...`; empty when it does. Values inside of others
    and those with a notation checked themselves when they were built."""
    match kind:
        case Integer(minimum=minimum, maximum=maximum):
            fits = isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
        case Text(pattern=pattern):
            fits = isinstance(value, str) and len(value) <= LONGEST_TEXT and bool(re.fullmatch(pattern, value))
        case Choice(names=names):
            fits = value in names
        case Listing(min_items=min_items):
            fits = isinstance(value, tuple | list) and len(value) >= min_items
        case Notation() | Scalar() | Table() | Section() | OneOf():
            fits = True
        case _:
            assert_never(kind)
    return "" if fits else f"expected {expected(kind)}, got {shown(value)}"


def expected(kind: Kind) -> str:
    """What a field takes, in words that follow `expected`."""
    match kind:
        case Text(what=what) | Notation(what=what):
            return what
        case Integer(minimum=minimum, maximum=maximum):
            return (
                f"an integer >= {minimum}" if maximum == LARGEST_INTEGER else f"an integer from {minimum} to {maximum}"
            )
        case Choice(names=names):
            return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        case Scalar():
            return "text, a number, or true or false"
        case Listing(min_items=min_items):
            return "a list with at least one item" if min_items else "a list"
        case Table(key_what=what):
            return f"a mapping from {what} to values"
        case Section(fields=fields):
            return f"a mapping with {_listed([field.name for field in fields])}"
        case OneOf(tags=tags):
            return f"a mapping with either {' or '.join(tags)}"
        case _:
            assert_never(kind)


def type_name(kind: Kind) -> str:
    """One or two words for a table."""
    match kind:
        case Text() | Choice():
            return "text"
        case Notation(unit=unit):
            return {"time": "duration", "bytes": "size"}.get(unit, unit)
        case Integer():
            return "integer"
        case Scalar():
            return "scalar"
        case Listing(item=item):
            return f"list of {type_name(item)}"
        case Table(value=value):
            return f"mapping to {type_name(value)}"
        case Section() | OneOf():
            return "mapping"
        case _:
            assert_never(kind)


def shown(value: object) -> str:
    """A value as a message shows it: short, and with its type where that is what is wrong."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = f"{value:.40g}" if isinstance(value, float) else str(value)
            return f"the number {text}"
        case str():
            return repr(value if len(value) <= 80 else f"{value[:80]}...")
        case list() | tuple():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case _:
            return str(value)


def _field(member: dataclasses.Field[Any], about: About) -> Field:
    required = member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
    default = None if required else member.default
    if member.default_factory is not dataclasses.MISSING:
        default = member.default_factory()
    return Field(
        name=member.name,
        doc=about.doc,
        kind=about.kind,
        required=required,
        default=default,
        supported=about.supported,
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
