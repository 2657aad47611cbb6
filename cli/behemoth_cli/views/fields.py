"""Fields of the run file, for `behemoth explain`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, Page, Section

if TYPE_CHECKING:
    from behemoth.spec.schema import FieldDoc


def field_page(doc: FieldDoc) -> Page:
    """One field, and the fields directly below it."""
    pairs = [("field", doc.path or "(the whole file)"), ("type", doc.type), ("takes", doc.expected)]
    if doc.path:
        pairs.append(("default", _default(doc)))
    if doc.only_with:
        pairs.append(("only with", doc.only_with))
    if not doc.supported:
        pairs.append(("state", "not supported yet: leave it out"))
    return Page(
        kind="Field",
        sections=(
            Section(pairs=tuple(pairs)),
            Section(lines=(doc.doc,)),
            Section(title="Fields", listing=field_listing(doc.children)),
        ),
        body=_item(doc),
    )


def field_listing(docs: Sequence[FieldDoc]) -> Listing:
    """One row a field."""
    columns = ("field", "type", "default", "meaning")
    return Listing(
        kind="FieldList",
        columns=tuple(Column(name=name) for name in columns),
        rows=tuple((doc.path, doc.type, _default(doc), _meaning(doc)) for doc in docs),
        items=tuple(_item(doc) for doc in docs),
    )


def _default(doc: FieldDoc) -> str:
    if doc.required:
        return f"this or {', '.join(doc.instead_of)}" if doc.instead_of else "required"
    if doc.default is None or doc.default == {} or doc.default == []:
        return "-"
    text = doc.default if isinstance(doc.default, str) else json.dumps(doc.default)
    return text if len(text) <= 40 else "see its fields"


def _meaning(doc: FieldDoc) -> str:
    only = f" Only with {doc.only_with}." if doc.only_with else ""
    return doc.doc + only + ("" if doc.supported else " Not supported yet.")


def _item(doc: FieldDoc) -> dict[str, object]:
    return {
        "path": doc.path,
        "type": doc.type,
        "takes": doc.expected,
        "doc": doc.doc,
        "required": doc.required,
        "default": doc.default,
        "onlyWith": doc.only_with,
        "insteadOf": list(doc.instead_of),
        "supported": doc.supported,
        "fields": [child.path for child in doc.children],
    }
