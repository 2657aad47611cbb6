"""The CRCs of the chunks that were read, to detect chunks of another checkpoint.

A chunk in the wrong place, such as in a file that was copied from another step's folder, has a matching CRC of its own.
Only the CRC over the CRCs of all chunks of an array, which the commit holds, shows it. So it is detected in arrays of
which all chunks were read, in any order and by any of the ranks. Neighbour: `chunk_reader`, which notes each chunk.
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
    """The chunks of one commit. Thread-safe; takes five bytes for each chunk of arrays that were read from."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._of_array: dict[int, _Seen] = {}
        self._unchecked: set[int] = set()
        self._lock = threading.Lock()

    def note(self, array: int, chunk: int, crc: int) -> None:
        """Record a chunk that was read; `crc` is that of its payload, and matches the stored one."""
        with self._lock:
            seen = self._of_array.get(array)
            if seen is None:
                num_chunks = grids(self._commit.layout)[array].num_chunks
                seen = self._of_array[array] = _Seen(np.zeros(num_chunks, "<u4"), np.zeros(num_chunks, np.bool_))
            seen.crcs[chunk], seen.is_known[chunk] = crc, True
            self._unchecked.add(array)

    def require_committed(self) -> None:
        """Raises Corrupt naming array and files when an array of which all chunks were read is not the committed one.
        It raises once for an array, and again only after more of that array was read."""
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
        "got others, each of them intact",
        hint=DAMAGED_HINT,
        code="array-content",
    )
