"""Random cuts of a tensor into boxes, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from behemoth.checkpoint.box import Box


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that cover it once: any box is cut again and again along any dim."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
    boxes: list[Box] = [tuple((0, size) for size in shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        low, high = box[dim]
        at = draw(st.integers(low, high))
        parts = [(low, at), (at, high)] if low < at < high else [(low, high)]
        boxes += [(*box[:dim], part, *box[dim + 1 :]) for part in parts]
    return shape, boxes
