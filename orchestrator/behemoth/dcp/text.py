"""Which text a record can hold: msgpack's is UTF-8, Python's may be file names that are none (surrogates).

Neighbours: `values` and `numpy_values`, which keep the others as bytes, `contents`, whose keys must be text.
"""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Whether `text` can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
