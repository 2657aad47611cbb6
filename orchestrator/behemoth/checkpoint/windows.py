"""Where the bytes of a piece lie in the program's buffer: contiguous, or in rows with other bytes between them.

A packed dim (gate|up) makes a rank hold several boxes whose rows alternate in its memory, while each box is contiguous
in the arena and in its chunks. The neighbours are `plan`, which makes windows, and `held`, which copies by them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class ByteRun(NamedTuple):
    """Rows of `row_bytes` in a buffer, each `pitch_bytes` behind the one before, the first at byte `begin`; one row is
    a plain run of bytes. `at`: the piece's byte that it begins with."""

    at: int
    begin: int
    num_rows: int
    row_bytes: int
    pitch_bytes: int

    @property
    def nbytes(self) -> int:
        return self.num_rows * self.row_bytes

    @property
    def extent_bytes(self) -> int:
        """From the first byte to the last one, with what lies between rows."""
        return (self.num_rows - 1) * self.pitch_bytes + self.row_bytes

    def view(self, buffer: Bytes) -> Bytes:
        """With one dim, or two where there are several rows."""
        span = buffer[self.begin : self.begin + self.extent_bytes]
        if self.num_rows == 1:
            return span
        shape, strides = (self.num_rows, self.row_bytes), (self.pitch_bytes, 1)
        return np.lib.stride_tricks.as_strided(span, shape, strides, writeable=buffer.flags.writeable)


class Window(NamedTuple):
    """A piece in its buffer, in bytes: rows of `row_bytes`, each `pitch_bytes` behind the one before. The piece begins
    `skip_bytes` into the row that begins at `start_bytes`, which is negative where a flat range begins within a row."""

    row_bytes: int
    pitch_bytes: int
    start_bytes: int
    skip_bytes: int

    def runs(self, start: int, stop: int) -> list[ByteRun]:
        """Bytes [start, stop) of the piece in its buffer, at most three runs."""
        if self.row_bytes == self.pitch_bytes:
            return [ByteRun(start, self.start_bytes + self.skip_bytes + start, 1, stop - start, stop - start)]
        found: list[ByteRun] = []
        at = start
        while at < stop:
            row, column = divmod(self.skip_bytes + at, self.row_bytes)
            begin = self.start_bytes + row * self.pitch_bytes + column
            num_rows = (stop - at) // self.row_bytes if column == 0 else 0
            length = self.row_bytes if num_rows > 1 else min(self.row_bytes - column, stop - at)
            found.append(ByteRun(at, begin, max(num_rows, 1), length, self.pitch_bytes))
            at += found[-1].nbytes
        return found

    def views(self, buffer: Bytes, start: int, stop: int) -> list[tuple[int, Bytes]]:
        """Bytes [start, stop) of the piece as one- or two-dimensional views of the buffer, at most three, each with the
        piece's byte that it begins with."""
        if self.row_bytes == self.pitch_bytes:  # most are, and often small: no ByteRun is made for these
            begin = self.start_bytes + self.skip_bytes
            return [(start, buffer[begin + start : begin + stop])]
        return [(run.at, run.view(buffer)) for run in self.runs(start, stop)]

    def gather(self, buffer: Bytes, start: int, stop: int, into: Bytes) -> None:
        """Copy bytes [start, stop) of the piece from the buffer."""
        for at, view in self.views(buffer, start, stop):
            np.copyto(into[at - start : at - start + view.size].reshape(view.shape), view)

    def scatter(self, data: Bytes, start: int, buffer: Bytes) -> None:
        """Copy `data`, which begins at byte `start` of the piece, into the buffer."""
        for at, view in self.views(buffer, start, start + len(data)):
            np.copyto(view, data[at - start : at - start + view.size].reshape(view.shape))
