"""A piece in the program's memory: by views of whole rows, compared with one byte after another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.windows import Window


@st.composite
def places(draw: st.DrawFn) -> tuple[Window, list[int], int]:
    """A window, the buffer's byte for each byte of the piece, and the size of the buffer."""
    row = draw(st.integers(1, 5))
    pitch = row + draw(st.integers(1, 5))
    low = draw(st.integers(0, pitch - row))
    num_rows = draw(st.integers(1, 5))
    whole = [line * pitch + low + column for line in range(num_rows) for column in range(row)]
    skip = draw(st.integers(0, row - 1))
    cut = draw(st.integers(0, whole[skip]))  # a flat range: the buffer begins within the first row
    end = draw(st.integers(skip + 1, len(whole)))
    window = Window(row_bytes=row, pitch_bytes=pitch, start_bytes=low - cut, skip_bytes=skip)
    return window, [byte - cut for byte in whole[skip:end]], num_rows * pitch - cut


@given(place=places(), data=st.data())
def test_every_byte_of_a_piece_is_taken_from_its_place_and_put_back(
    place: tuple[Window, list[int], int], data: st.DataObject
) -> None:
    window, bytes_of_piece, size = place
    start = data.draw(st.integers(0, len(bytes_of_piece) - 1))
    stop = data.draw(st.integers(start + 1, len(bytes_of_piece)))
    buffer = np.arange(size, dtype=np.uint8)
    taken = np.zeros(stop - start, dtype=np.uint8)
    window.gather(buffer, start, stop, taken)
    assert taken.tolist() == bytes_of_piece[start:stop]
    target = np.full(size, 255, dtype=np.uint8)
    window.scatter(taken, start, target)
    expected = np.full(size, 255, dtype=np.uint8)
    expected[bytes_of_piece[start:stop]] = taken
    assert target.tolist() == expected.tolist()


def test_whole_rows_are_one_view_however_many_they_are() -> None:
    window = Window(row_bytes=4, pitch_bytes=12, start_bytes=0, skip_bytes=2)
    views = window.views(np.zeros(12 * 1000, dtype=np.uint8), 0, 4 * 900)
    assert [view.shape for _, view in views] == [(2,), (899, 4), (2,)]
