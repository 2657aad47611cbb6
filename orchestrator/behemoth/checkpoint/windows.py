"""Where the bytes of a piece lie in the program's buffer: one behind the other, or in rows with others between them.

A packed dim (gate|up) makes a rank hold several boxes whose rows alternate in its memory, while each box is contiguous
in the arena and in its chunks. The neighbours are `plan`, which makes windows, and `staging`, which copies by them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Window(NamedTuple):
    """A piece in its buffer, in bytes: rows of `row_bytes`, each `pitch_bytes` behind the one before. The piece begins
    `skip_bytes` into the row that begins at `start_bytes`, which is negative where a flat range begins within a row."""

    row_bytes: int
    pitch_bytes: int
    start_bytes: int
    skip_bytes: int

    def views(self, buffer: Bytes, start: int, stop: int) -> list[tuple[int, Bytes]]:
        """Bytes [start, stop) of the piece as one- or two-dimensional views of the buffer, at most three, each with the
        piece's byte that it begins with."""
        if self.row_bytes == self.pitch_bytes:
            begin = self.start_bytes + self.skip_bytes
            return [(start, buffer[begin + start : begin + stop])]
        found: list[tuple[int, Bytes]] = []
        at = start
        while at < stop:
            row, column = divmod(self.skip_bytes + at, self.row_bytes)
            begin = self.start_bytes + row * self.pitch_bytes + column
            num_rows = (stop - at) // self.row_bytes if column == 0 else 0
            if num_rows > 1:
                span = buffer[begin : begin + (num_rows - 1) * self.pitch_bytes + self.row_bytes]
                view = np.lib.stride_tricks.as_strided(
                    span, (num_rows, self.row_bytes), (self.pitch_bytes, 1), writeable=buffer.flags.writeable
                )
                found.append((at, view))
                at += num_rows * self.row_bytes
            else:
                length = min(self.row_bytes - column, stop - at)
                found.append((at, buffer[begin : begin + length]))
                at += length
        return found

    def gather(self, buffer: Bytes, start: int, stop: int, into: Bytes) -> None:
        """Copy bytes [start, stop) of the piece from the buffer."""
        for at, view in self.views(buffer, start, stop):
            np.copyto(into[at - start : at - start + view.size].reshape(view.shape), view)

    def scatter(self, data: Bytes, start: int, buffer: Bytes) -> None:
        """Copy `data`, which begins at byte `start` of the piece, into the buffer."""
        for at, view in self.views(buffer, start, start + len(data)):
            np.copyto(view, data[at - start : at - start + view.size].reshape(view.shape))
