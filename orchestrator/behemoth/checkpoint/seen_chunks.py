"""The CRCs of the chunks that a reader has seen, so that chunks of another checkpoint are found out.

A chunk that lies where it does not belong, such as in a file that was copied out of another step's folder, has the
right CRC behind it. What tells is the CRC over all of an array's chunks in the commit; so it is known of arrays that
were read whole, in any order and by any ranks together. Neighbour: `chunk_reader`, which notes each chunk.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt
from behemoth.checkpoint.commit_record import DAMAGED_HINT
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import Commit


class SeenChunks:
    """Of one commit. Thread-safe; five bytes for each chunk of the arrays that were touched."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._of_array: dict[int, _Seen] = {}
        self._unchecked: set[int] = set()
        self._lock = threading.Lock()

    def note(self, array: int, chunk: int, crc: int) -> None:
        """A chunk whose payload has this CRC, as the four bytes behind it say too."""
        with self._lock:
            seen = self._of_array.get(array)
            if seen is None:
                num_chunks = grids(self._commit.layout)[array].num_chunks
                seen = self._of_array[array] = _Seen(np.zeros(num_chunks, "<u4"), np.zeros(num_chunks, np.bool_))
            seen.crcs[chunk], seen.is_known[chunk] = crc, True
            self._unchecked.add(array)

    def require_committed(self) -> None:
        """Raises Corrupt naming array and files when an array whose chunks were all seen is not the commit's. Tells it
        once, and again when more of that array is read: who reads others next has nothing to do with it."""
        with self._lock:
            whole = [array for array in sorted(self._unchecked) if self._of_array[array].is_known.all()]
            self._unchecked.difference_update(whole)
            for array in whole:
                if crc32c(self._of_array[array].crcs.tobytes()) != self._commit.index.content_crcs[array]:
                    raise _of_another(self._commit, array)


class _Seen(NamedTuple):
    """By chunk, in C order of the array's grid."""

    crcs: npt.NDArray[np.uint32]
    is_known: npt.NDArray[np.bool_]


def _of_another(commit: Commit, array: int) -> Corrupt:
    return Corrupt(
        f"array {commit.layout.arrays[array].name!r}, {commit.files(array)}: expected the chunks that were committed, "
        "got others, each of them whole",
        hint=DAMAGED_HINT,
        code="array-content",
    )
