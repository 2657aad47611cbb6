"""The whole schema of a run file as a tree of fields, and what `behemoth explain FIELD` tells of each.

The tree is put together from the dataclasses of the run, so nothing is said twice. `behemoth.spec.decode` reads by it,
`behemoth.spec.openapi` and `behemoth.spec.reference` write it in other forms.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from behemoth.base.errors import NotFound
from behemoth.spec.document import encode_value
from behemoth.spec.field import (
    About,
    Choice,
    Field,
    Kind,
    Listing,
    OneOf,
    Section,
    Text,
    expected,
    fields_of,
    type_name,
)
from behemoth.spec.run import API_VERSION, KIND, NAME_PATTERN, TrainingRun, suggest_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The identity of a run."""

    name: Annotated[
        str,
        About(
            doc="Name of the run; also that of its folder.",
            kind=Text(what="a DNS label (at most 63 of a-z, 0-9 and '-')", pattern=NAME_PATTERN, suggest=suggest_name),
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDoc:
    """What there is to know about one field."""

    path: str
    type: str
    expected: str
    """What the field takes, in words."""
    doc: str
    required: bool
    default: object
    """As it would be written in a file; None where nothing stands for it."""
    unit: str
    supported: bool
    only_with: str
    """The sibling that this field needs where a mapping has several forms; empty elsewhere."""
    instead_of: tuple[str, ...]
    """The siblings of which exactly one is wanted, this field or one of them; empty elsewhere."""
    children: tuple[FieldDoc, ...]


_MIN_PREFIX = 3
"""From so many letters on, the beginning of a name counts as like it: `env` for `environment`."""


def explain(path: str = "") -> FieldDoc:
    """The documentation of the field at `path`, such as `spec.mesh.ep`; the empty path is the whole file.

    Raises NotFound whose hint is the nearest path.
    """
    wanted = path.strip(".")
    for doc in walk(_root_doc()):
        if doc.path == wanted:
            return doc
    raise NotFound(
        f"field {path!r}: expected a field of {KIND}, got none of that path",
        hint=nearest_path(wanted) or "`behemoth explain` lists the fields",
        code="unknown-field",
    )


def walk(doc: FieldDoc) -> Iterator[FieldDoc]:
    """A field and everything below it, in order."""
    yield doc
    for child in doc.children:
        yield from walk(child)


def nearest_path(path: str) -> str:
    """A hint that names the field most like `path`: the same name elsewhere, or a similar one in the same place."""
    paths = [doc.path for doc in walk(_root_doc()) if doc.path]
    parent, _, leaf = path.rpartition(".")
    siblings = {_fold(_leaf(p)): p for p in paths if p.rpartition(".")[0] == parent}
    leaves = {_fold(_leaf(p)): p for p in reversed(paths)}
    wanted = _fold(leaf)
    begun = {name: p for name, p in siblings.items() if len(wanted) >= _MIN_PREFIX and name.startswith(wanted)}
    tries = ((siblings, 1.0), (leaves, 1.0), (begun, 0.0), (siblings, 0.75), (leaves, 0.75), (siblings, 0.5))
    for known, cutoff in tries:
        close = difflib.get_close_matches(wanted, known, n=1, cutoff=cutoff)
        if close:
            return f"did you mean {known[close[0]]}?"
    return ""


@functools.cache
def root_section() -> Section:
    """The whole file: the envelope of Kubernetes around metadata and spec."""
    fields = fields_of(TrainingRun)
    return Section(
        fields=(
            _required("apiVersion", "Version of this format.", Choice(names=(API_VERSION,))),
            _required("kind", "What the file describes.", Choice(names=(KIND,))),
            _required("metadata", "Who the run is.", Section(fields=fields_of(Metadata), build=Metadata)),
            _required("spec", "What the run is.", Section(fields=fields, build=dict)),
        ),
        build=_build_run,
    )


def _build_run(*, metadata: Metadata, spec: Mapping[str, object], **_envelope: object) -> TrainingRun:
    return TrainingRun(name=metadata.name, **spec)  # type: ignore[arg-type]  # decoded by TrainingRun's own fields


def _required(name: str, doc: str, kind: Kind) -> Field:
    return Field(name=name, doc=doc, kind=kind, required=True, default=None, supported=True)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _fold(name: str) -> str:
    """gpusPerNode, gpus-per-node and gpus_per_node are one name."""
    return name.replace("_", "").replace("-", "").lower()


@functools.cache
def _root_doc() -> FieldDoc:
    root = root_section()
    doc = f"A run file: one {KIND} of {API_VERSION}."
    field = _required("", doc, root)
    return _field_doc(field, "", "")


def _field_doc(field: Field, parent: str, only_with: str, instead_of: tuple[str, ...] = ()) -> FieldDoc:
    path = f"{parent}.{field.name}" if parent else field.name
    return FieldDoc(
        path=path,
        type=type_name(field.kind),
        expected=expected(field.kind),
        doc=field.doc,
        required=field.required,
        default=None if field.default is None else encode_value(field.kind, field.default),
        unit=_unit(field.kind),
        supported=field.supported,
        only_with=only_with,
        instead_of=instead_of,
        children=tuple(_children(field.kind, path)),
    )


def _children(kind: Kind, path: str) -> Iterator[FieldDoc]:
    match kind:
        case Section(fields=fields):
            yield from (_field_doc(field, path, "") for field in fields)
        case OneOf(sections=sections):
            yield from _variant_children(sections, path)
        case _:
            return


def _variant_children(sections: tuple[Section, ...], path: str) -> Iterator[FieldDoc]:
    """Fields of all forms, each once; those that not every form has say with which one they go."""
    seen: set[str] = set()
    for section in sections:
        for field in section.fields:
            if field.name in seen:
                continue
            seen.add(field.name)
            shared = all(other.field(field.name) for other in sections)
            tag = section.fields[0].name
            if not shared and field.name == tag:
                others = tuple(other.fields[0].name for other in sections if other is not section)
                yield _field_doc(field, path, "", instead_of=others)
            else:
                yield _field_doc(field, path, "" if shared else tag)


def _unit(kind: Kind) -> str:
    match kind:
        case Listing(item=item):
            return _unit(item)
        case _:
            return getattr(kind, "unit", "")
