"""The reference of the run file as Markdown, one row per field, for docs/spec.md.

Written from the schema, so it cannot fall behind; a test compares the page with it.
"""

from __future__ import annotations

import json

from behemoth.spec.schema import FieldDoc, explain, walk

BEGIN = "<!-- fields: written from the schema, a test compares them -->"
END = "<!-- end of fields -->"


def markdown() -> str:
    """The part of docs/spec.md between BEGIN and END, both included, with a newline at its end."""
    sections = [doc for doc in walk(explain()) if doc.children]
    return "\n".join([BEGIN, *(_section(doc) for doc in sections), END, ""])


def _section(doc: FieldDoc) -> str:
    title = f"`{doc.path}`" if doc.path else "The file"
    rows = [_row(child) for child in doc.children]
    head = ["", f"### {title}", "", doc.doc, "", "| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _row(doc: FieldDoc) -> str:
    name = doc.path.rpartition(".")[2]
    return f"| `{name}` | {doc.type} | {_default(doc)} | {_meaning(doc)} |"


def _default(doc: FieldDoc) -> str:
    if doc.required:
        return "this or " + ", ".join(f"`{name}`" for name in doc.instead_of) if doc.instead_of else "required"
    if doc.default is None or doc.default == {} or doc.default == []:
        return ""
    return "see below" if doc.children else f"`{json.dumps(doc.default).strip(chr(34))}`"


def _meaning(doc: FieldDoc) -> str:
    parts = [doc.doc]
    if not doc.children:
        parts.append(f"Takes {doc.expected}.")
    if doc.only_with:
        parts.append(f"Only with `{doc.only_with}`.")
    if not doc.supported:
        parts.append("**Not supported yet.**")
    return " ".join(parts).replace("|", "\\|")
