"""What the messages of every wire of a run have in common.

Neighbours: `reports` go from an agent to the coordinator, `commands` and `setup` come down; `session` is the wire
between agent and worker, `peers` that between nodes.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of what travels; unknown fields of a higher minor version are ignored."""
