"""What msgspec raises for bytes that are no document of ours, and its words in ours. Whoever decodes turns all of it
into an error of ours.

Must not decode anything itself. Neighbours: every module that reads what a disk or a peer may have mangled.
"""

from __future__ import annotations

from typing import Final

import msgspec

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Besides its own error msgspec lets two of Python's through: of text that is no UTF-8, and of what is nested too
deeply, also in fields that are passed over."""


def told(error: Exception) -> str:
    """A decoder's words as they go on within a message: its first one small, unless that is an abbreviation."""
    text = str(error)
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
