"""A run as plain values again: the canonical document, its fingerprint, and what differs between two of them.

The document names every field that has a value, defaults too, so that a later change of a default does not change an
old run. Reading it back is the business of `behemoth.spec.decode`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from behemoth.spec.field import (
    Choice,
    Integer,
    Kind,
    Listing,
    Notation,
    OneOf,
    Scalar,
    Section,
    Table,
    Text,
    fields_of,
)
from behemoth.spec.run import API_VERSION, KIND, TrainingRun
from behemoth.spec.text import join_path

_NOT_TRAINED = ("drill", "pipeline", "recipe")
_ENVIRONMENT = "spec.workload.environment."


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field that differs; None stands for a field that is absent on that side."""

    path: str
    old: object
    new: object

    def __str__(self) -> str:
        """Values of the environment are not shown: they may be secrets."""
        if self.path.startswith(_ENVIRONMENT) and None not in (self.old, self.new):
            return f"{self.path}: another value"
        shown = _hidden if self.path.startswith(_ENVIRONMENT) else _shown
        return f"{self.path}: {shown(self.old)} -> {shown(self.new)}"


def to_document(run: TrainingRun) -> dict[str, object]:
    """The run as dict, list, str, int, float and bool, in the order of the schema; `decode_document` reads it back."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": run.name},
        "spec": encode_value(Section(fields=fields_of(TrainingRun), build=dict), run),
    }


def difference(old: TrainingRun, new: TrainingRun) -> list[Change]:
    """Fields in which two runs differ, in the order of the schema. What does not change the training is left out, and a
    run may be resumed with another: drills, which strike from outside, pipeline and recipe, by which a save is planned.
    """
    before, after = _flat(_identity(old), ""), _flat(_identity(new), "")
    paths = [*before, *(path for path in after if path not in before)]
    changes = (Change(path=path, old=before.get(path), new=after.get(path)) for path in paths)
    return [change for change in changes if not _same(change.old, change.new)]


def fingerprint(run: TrainingRun) -> str:
    """SHA-256 in hex; equal exactly when `difference` finds nothing."""
    text = json.dumps(_identity(run), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode_value(kind: Kind, value: object) -> object:
    """A value as it is written in a file."""
    match kind:
        case Text() | Integer() | Choice() | Scalar():
            return value
        case Notation(write=write):
            return write(value)
        case Listing(item=item):
            assert isinstance(value, tuple | list)
            return [encode_value(item, entry) for entry in value]
        case Table(value=of):
            assert isinstance(value, Mapping)
            return {name: encode_value(of, value[name]) for name in sorted(value)}
        case Section(fields=fields):
            held = {field.name: (field.kind, getattr(value, field.name)) for field in fields}
            return {name: encode_value(of, entry) for name, (of, entry) in held.items() if entry is not None}
        case OneOf(sections=sections):
            return encode_value(next(section for section in sections if section.build is type(value)), value)
        case _:
            assert_never(kind)


def _identity(run: TrainingRun) -> dict[str, object]:
    document = to_document(run)
    spec = document["spec"]
    assert isinstance(spec, dict)
    return {**document, "spec": {name: value for name, value in spec.items() if name not in _NOT_TRAINED}}


def _flat(value: object, path: str) -> dict[str, object]:
    """Every leaf by its path. A list is one leaf: people change it as a whole."""
    if not isinstance(value, dict):
        return {path: value}
    return {leaf: held for key, below in value.items() for leaf, held in _flat(below, join_path(path, key)).items()}


def _same(old: object, new: object) -> bool:
    """1, 1.0 and True are different values of an argument."""
    return type(old) is type(new) and old == new


def _hidden(value: object) -> str:
    return "absent" if value is None else "present"


def _shown(value: object) -> str:
    return "absent" if value is None else json.dumps(value)
