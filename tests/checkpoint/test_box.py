"""The arithmetic of boxes, against what numpy takes out of an array."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.box import Box, enclosing, flat_boxes, moved, num_elements, shape_of, slices_of, slices_within

WHOLE = ((0, 4), (0, 5), (0, 6))
ARRAY = np.arange(num_elements(WHOLE)).reshape(shape_of(WHOLE))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    starts = [draw(st.integers(0, size - 1)) for _, size in WHOLE]
    return tuple((start, draw(st.integers(start + 1, size))) for start, (_, size) in zip(starts, WHOLE, strict=True))


@given(boxes())
def test_a_box_is_as_large_as_what_it_takes_out_of_an_array(box: Box) -> None:
    part = ARRAY[slices_of(box)]
    assert (part.shape, part.size) == (shape_of(box), num_elements(box))


@given(boxes(), boxes())
def test_a_box_within_another_takes_the_same_elements_out_of_that_one(one: Box, two: Box) -> None:
    outer = enclosing([one, two])
    assert np.array_equal(ARRAY[slices_of(outer)][slices_within(one, outer)], ARRAY[slices_of(one)])


@given(boxes(), boxes())
def test_a_box_of_a_part_is_moved_to_where_the_part_begins(one: Box, two: Box) -> None:
    outer = enclosing([one, two])
    begin = [start for start, _ in outer]
    assert moved(tuple((low - at, high - at) for (low, high), at in zip(one, begin, strict=True)), begin) == one


def test_of_an_array_that_is_taken_whole_a_box_stays_where_it_is() -> None:
    assert moved(WHOLE, ()) == WHOLE


@given(boxes(), st.data())
def test_elements_that_follow_one_another_in_a_box_are_boxes(box: Box, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, num_elements(box)))
    stop = data.draw(st.integers(start, num_elements(box)))
    found = [ARRAY[slices_of(one)].reshape(-1) for one in flat_boxes(box, (start, stop))]
    assert np.array_equal(
        np.concatenate([*found, ARRAY[:0].reshape(-1)]), ARRAY[slices_of(box)].reshape(-1)[start:stop]
    )


def test_an_array_without_dims_is_one_element() -> None:
    assert (num_elements(()), flat_boxes((), (0, 1)), slices_of(())) == (1, [()], ())
