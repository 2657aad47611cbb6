"""A `repr` without secrets, for messages that appear in logs, errors and tracebacks. Dataclasses have
`field(repr=False)` for that; msgspec's structs have no equivalent.
"""

from __future__ import annotations

import msgspec


def repr_without(message: msgspec.Struct, *secrets: str) -> str:
    """The `repr` of a struct without the values of the fields `secrets`."""
    said = (
        f"{name}={'...' if name in secrets else repr(getattr(message, name))}" for name in message.__struct_fields__
    )
    return f"{type(message).__name__}({', '.join(said)})"
