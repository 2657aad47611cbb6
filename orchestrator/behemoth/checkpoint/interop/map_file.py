"""The document of a name map: YAML or JSON, strict and versioned. Some ship with the package.

Unknown fields are refused with their path, so that a misspelled step is not a step that is left out. Neighbours:
`rules` (what a document means), `spec.text` (how YAML is read).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Literal

import msgspec

from behemoth.base.decoding import decode_builtins, told
from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.patterns import Pattern
from behemoth.checkpoint.interop.rules import NameMap, Rule, rule_text
from behemoth.checkpoint.interop.sizes import NamedSize, SizePlace, is_size_name
from behemoth.checkpoint.interop.steps import Concat, Flatten, Permute, Split, Stack, Step, Unflatten, Unstack
from behemoth.spec.text import read_document

FORMAT = 1
MAP_NAMES = ("weights", "llama4-hf", "llama4-meta", "llama4-megatron", "tiny-moe-hf")
"""The maps that ship with the package."""

_Dim = Annotated[int, msgspec.Meta(ge=0, lt=32)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


def named_map(name: str, sizes: Mapping[str, int] | None = None) -> NameMap:
    """A map that ships with the package; `sizes` as in `decode_map`. Raises Invalid for an unknown name."""
    return decode_map(shipped_map(name), source=f"map {name}", sizes=sizes)


def shipped_map(name: str) -> bytes:
    """The document of a map that ships with the package. Raises Invalid for an unknown name."""
    if name not in MAP_NAMES:
        raise Invalid(f"map: expected one of {', '.join(MAP_NAMES)}, got {name!r}", code="unknown-map")
    return resources.files("behemoth.checkpoint.interop").joinpath("maps", f"{name}.yaml").read_bytes()


def decode_map(data: bytes, *, source: str, sizes: Mapping[str, int] | None = None) -> NameMap:
    """Read a document of at most 256 KiB. `sizes` beat those that it names. Raises Invalid that names `source` and the
    place of what is wrong."""
    try:
        value = read_document(data, source=source).value
    except Invalid as error:
        raise Invalid(error.message, hint=error.hint, code="map-format") from error
    try:
        version = decode_builtins(value, _Version).format
        if version != FORMAT:
            hint = "this map needs a newer behemoth"
            raise Invalid(f"{source}: expected format {FORMAT}, got {version}", hint=hint, code="map-version")
        document = decode_builtins(value, _Document)
    except msgspec.ValidationError as error:
        raise Invalid(f"{source}: expected a name map, got: {told(error)}", code="map-format") from error
    try:
        rules = tuple(_rule(entry) for entry in document.rules)
        return NameMap(
            rules=rules,
            dropped=_patterns(document.drop.ours),
            dropped_back=_patterns(document.drop.theirs),
            drops_others=document.others == "drop",
            unscaled=_patterns(document.unscaled),
            sizes=_sizes(document.sizes, sizes or {}),
            digest=_digest(data, sizes or {}),
        )
    except Invalid as error:
        raise Invalid(f"{source}: {error.message}", hint=error.hint, code=error.code) from error


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dim: _Dim
    sizes: Annotated[list[int | str], msgspec.Meta(min_length=2, max_length=4096)]


class _Over(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dim: _Dim
    over: _Name


class _Dims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dim: _Dim
    sizes: Annotated[list[int | str], msgspec.Meta(min_length=1, max_length=32)]


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    permute: Annotated[list[_Dim], msgspec.Meta(max_length=32)] | None = None
    split: _Part | None = None
    concat: _Part | None = None
    stack: _Over | None = None
    unstack: _Over | None = None
    unflatten: _Dims | None = None
    flatten: _Dims | None = None


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ours: _Name | list[_Name]
    theirs: _Name | list[_Name]
    steps: list[_Step] = []
    beside: _Name | None = None


class _Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ours: list[_Name] = []
    theirs: list[_Name] = []


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: _Name
    dim: _Dim


class _Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ours: _Place
    theirs: _Place


class _Version(msgspec.Struct, frozen=True):
    format: int


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    rules: Annotated[list[_Rule], msgspec.Meta(min_length=1, max_length=10_000)]
    about: str = ""
    drop: _Drop = _Drop()
    others: Literal["refuse", "drop"] = "refuse"
    unscaled: list[_Name] = []
    sizes: dict[str, Annotated[int, msgspec.Meta(ge=1)] | _Measured] = {}


def _rule(entry: _Rule) -> Rule:
    sources, targets = _patterns(entry.ours), _patterns(entry.theirs)
    try:
        steps = tuple(_step(one) for one in entry.steps)
    except Invalid as error:
        text = rule_text(sources, targets)
        raise Invalid(f"{text}: {error.message}", hint=error.hint, code=error.code) from error
    beside = None if entry.beside is None else Pattern(text=entry.beside)
    return Rule(sources=sources, targets=targets, steps=steps, beside=beside)


def _sizes(entries: Mapping[str, int | _Measured], given: Mapping[str, int]) -> tuple[NamedSize, ...]:
    for name in entries:
        if not is_size_name(name):
            raise Invalid(f"size {name!r}: expected a name of a-z, 0-9 and _ other than 'rest'", code="map-sizes")
    for name, value in given.items():
        if name not in entries or value < 1:
            expected = f"one of {', '.join(entries)}" if entries else "none, since the map names none"
            got = name if name not in entries else f"{name}={value}"
            raise Invalid(f"size: expected {expected}, and at least 1, got {got}", code="map-sizes")
    return tuple(_size(name, given.get(name, entry)) for name, entry in entries.items())


def _size(name: str, entry: int | _Measured) -> NamedSize:
    if isinstance(entry, int):
        return NamedSize(name=name, value=entry)
    return NamedSize(name=name, source=_place(entry.ours), target=_place(entry.theirs))


def _place(entry: _Place) -> SizePlace:
    return SizePlace(pattern=Pattern(text=entry.name), dim=entry.dim)


def _digest(data: bytes, sizes: Mapping[str, int]) -> str:
    """SHA-256 of the document and of the sizes that were given beside it, hex."""
    told = "".join(f"\n{name}={value}" for name, value in sorted(sizes.items()))
    return hashlib.sha256(data + told.encode()).hexdigest()


def _patterns(texts: str | list[str]) -> tuple[Pattern, ...]:
    return tuple(Pattern(text=text) for text in ([texts] if isinstance(texts, str) else texts))


def _step(entry: _Step) -> Step:
    given = [name for name in entry.__struct_fields__ if getattr(entry, name) is not None]
    if len(given) != 1:
        raise Invalid(
            f"step: expected one of {', '.join(entry.__struct_fields__)}, got {' and '.join(given) or 'none'}",
            code="map-step",
        )
    if entry.permute is not None:
        if sorted(entry.permute) != list(range(len(entry.permute))):
            raise Invalid(f"permute: expected each dim once, got {entry.permute}", code="map-permute")
        return Permute(order=tuple(entry.permute))
    if entry.split is not None:
        return Split(dim=entry.split.dim, sizes=tuple(entry.split.sizes))
    if entry.concat is not None:
        return Concat(dim=entry.concat.dim, sizes=tuple(entry.concat.sizes))
    if entry.stack is not None:
        return Stack(dim=entry.stack.dim, over=entry.stack.over)
    if entry.unstack is not None:
        return Unstack(dim=entry.unstack.dim, over=entry.unstack.over)
    if entry.unflatten is not None:
        return Unflatten(dim=entry.unflatten.dim, sizes=tuple(entry.unflatten.sizes))
    assert entry.flatten is not None
    return Flatten(dim=entry.flatten.dim, sizes=tuple(entry.flatten.sizes))
