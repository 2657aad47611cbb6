"""Names of things, as types, so that a step cannot be passed for a rank. No behaviour lives here."""

from __future__ import annotations

from typing import NewType

RunUid = NewType("RunUid", str)
NodeId = NewType("NodeId", str)
WriteId = NewType("WriteId", str)
"""Names one try of one save, never reused: `a<attempt>-<counter>` within a run, chosen by the brain."""
UploadId = NewType("UploadId", str)
"""Names one multipart upload of one object; chosen by the object store, opaque."""

Rank = NewType("Rank", int)
"""A worker process, 0 .. world size - 1."""
Slot = NewType("Slot", int)
"""A place in the gang, 0 .. num_nodes - 1 (torchrun's GROUP_RANK). A node holds at most one slot."""
Attempt = NewType("Attempt", int)
"""Counts the starts of the gang from 1; raised durably before any Start."""
Epoch = NewType("Epoch", int)
"""The coordinator's term, from 1."""
Step = NewType("Step", int)
"""Number of completed optimizer steps: after the first step it is 1."""
