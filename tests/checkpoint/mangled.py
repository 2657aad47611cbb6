"""Documents that were valid and are not any more: what a broken disk, a foreign tool or an attacker leaves.

Bytes are flipped, cut and repeated; values within the document are exchanged for extreme ones, and checksums made right
again, so that what lies behind them is tried too.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

EXTREMES: st.SearchStrategy[object] = st.sampled_from(
    [
        None, True, -1, 0, 1, 7, 2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, 1e308,
        "", "a/../b", "\0", "x" * 300, "fp8", "dp", b"", b"\xff" * 9, [], [[]], [0], [2**62] * 3, {}, {"a": 1},
    ]
)  # fmt: skip


@st.composite
def mangled_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, repeated, or with some other bytes."""
    kind = draw(st.sampled_from(["cut", "repeat", "flip", "insert"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "cut":
        return data[:at]
    if kind == "repeat":
        return data[:at] + data
    other = draw(st.binary(min_size=1, max_size=4))
    return data[:at] + other + data[at + (len(other) if kind == "flip" else 0) :]


@st.composite
def mangled_document(draw: st.DrawFn, document: object, *, encode: Callable[[object], bytes]) -> bytes:
    """With one to three values replaced, removed or doubled, wherever they are."""
    for _ in range(draw(st.integers(1, 3))):
        document = _mangled(draw, document)
    return encode(document)


def _mangled(draw: st.DrawFn, value: object) -> object:
    """Walks down at random and changes what it comes to."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(EXTREMES)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "without", "more"]))
        if kind == "without":
            return {name: one for name, one in value.items() if name != key}
        if kind == "more":
            return {**value, "unheard_of": draw(EXTREMES)}
        return {**value, key: _mangled(draw, value[key])}
    at = draw(st.integers(0, len(value) - 1))
    kind = draw(st.sampled_from(["inside", "inside", "inside", "without", "double"]))
    if kind == "without":
        return value[:at] + value[at + 1 :]
    if kind == "double":
        return value[: at + 1] + value[at:]
    return [*value[:at], _mangled(draw, value[at]), *value[at + 1 :]]
