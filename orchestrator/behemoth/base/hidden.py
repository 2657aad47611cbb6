"""What a message says of itself in logs, errors and traces: all but its secrets. Dataclasses have `field(repr=False)`
for that; msgspec's structs have nothing of the kind.
"""

from __future__ import annotations

import msgspec


def repr_without(message: msgspec.Struct, *secrets: str) -> str:
    """Its `repr`, without the values of these fields."""
    said = (
        f"{name}={'...' if name in secrets else repr(getattr(message, name))}" for name in message.__struct_fields__
    )
    return f"{type(message).__name__}({', '.join(said)})"
