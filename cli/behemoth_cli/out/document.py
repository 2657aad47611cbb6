"""Versioned documents for scripts: JSON or YAML, additive only.

{"apiVersion": "cli.behemoth.dev/v1", "kind": "CheckpointList", "items": [...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, assert_never

API_VERSION = "cli.behemoth.dev/v1"

DocumentFormat = Literal["json", "yaml"]


def document(kind: str, body: Mapping[str, object]) -> dict[str, object]:
    """The envelope around a body of plain values."""
    return {"apiVersion": API_VERSION, "kind": kind, **body}


def encoded(value: Mapping[str, object], form: DocumentFormat) -> str:
    """Text that ends in one newline."""
    match form:
        case "json":
            return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        case "yaml":
            import yaml  # 20 ms that only this format needs

            return str(yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True))
        case _:
            assert_never(form)


def _plain(value: object) -> object:
    """Tuples as lists, for YAML."""
    match value:
        case Mapping():
            return {str(name): _plain(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case _:
            return value
