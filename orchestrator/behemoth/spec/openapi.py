"""The schema as OpenAPI v3, in the structural form that a CustomResourceDefinition wants.

Derived from the tree of `behemoth.spec.schema`. What OpenAPI cannot say (rules between fields, ranges of durations)
stays with the decoder, so a document that passes here may still be refused there, and never the other way round.
"""

from __future__ import annotations

from typing import Any, TypeAlias, assert_never

from behemoth.spec.document import encode_value
from behemoth.spec.field import (
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
)
from behemoth.spec.schema import root_section

Json: TypeAlias = dict[str, Any]
"""Any, because JSON has no closed type here."""


def openapi() -> Json:
    """The schema of a whole run file, `apiVersion` and `metadata` included, as plain JSON values."""
    return _schema(root_section())


def _schema(kind: Kind) -> Json:
    match kind:
        case Text(pattern=pattern):
            return {"type": "string", "maxLength": LONGEST_TEXT, "pattern": _whole(pattern)}
        case Notation(pattern=pattern):
            return {"type": "string", "maxLength": LONGEST_TEXT, "pattern": _whole(pattern)}
        case Integer(minimum=minimum, maximum=maximum):
            return {"type": "integer", "format": "int64", "minimum": minimum, "maximum": maximum}
        case Choice(names=names):
            return {"type": "string", "enum": list(names)}
        case Scalar():
            return {"x-kubernetes-preserve-unknown-fields": True}
        case Listing(item=item, min_items=min_items):
            return {"type": "array", "items": _schema(item), "minItems": min_items}
        case Table(value=value):
            return {"type": "object", "additionalProperties": _schema(value)}
        case Section(fields=fields, complete=complete):
            return _object(fields, with_defaults=complete is None)
        case OneOf(sections=sections):
            return _either(sections)
        case _:
            assert_never(kind)


def _object(fields: tuple[Field, ...], *, with_defaults: bool) -> Json:
    """Defaults are left out where some depend on what else is written: the API server would write them all."""
    required = [field.name for field in fields if field.required]
    properties = {field.name: _property(field, with_default=with_defaults) for field in fields}
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _property(field: Field, *, with_default: bool) -> Json:
    has_default = with_default and field.default is not None
    default = {"default": encode_value(field.kind, field.default)} if has_default else {}
    note = "" if field.supported else " Not supported yet."
    return {"description": field.doc + note, **_schema(field.kind), **default}


def _either(sections: tuple[Section, ...]) -> Json:
    """One object with the fields of all forms, and `oneOf` to tell which are needed: a structural schema must not
    define properties below `oneOf`."""
    fields = (field for section in sections for field in section.fields)
    merged = {field.name: _property(field, with_default=False) for field in fields}
    forms = [{"required": [field.name for field in section.fields if field.required]} for section in sections]
    return {"type": "object", "properties": merged, "oneOf": forms}


def _whole(pattern: str) -> str:
    """OpenAPI searches where we match the whole text; its dialect (RE2, ECMA 262) has no `\\0`."""
    return f"^({pattern})$".replace(r"\0", r"\x00")
