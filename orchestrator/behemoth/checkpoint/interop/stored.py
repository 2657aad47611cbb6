"""The arrays of a committed checkpoint as lazy tensors: read chunk by chunk, every byte checked by its CRC.

Before the first element of an array is returned, the CRCs beside all of its chunks are checked against the commit, so
that an intact chunk of another write is detected even where only some chunks are read. Neighbours: `chunk_reader`
reads, `foreign` is the same for other people's files.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt
from behemoth.checkpoint.chunk_reader import ChunkReaders
from behemoth.checkpoint.commit_record import DAMAGED_HINT
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.tensors import Chunked, Raw, Tensor, raw_dtype
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.threads import batched, run_all
from behemoth.ports import ObjectStore


def stored_tensors(store: ObjectStore, commit: Commit, *, threads: int) -> dict[str, Tensor]:
    """Every array by name, in order of name. Opens nothing yet."""
    readers = ChunkReaders(store, commit)
    return {
        grid.spec.name: Chunked(
            dtype=grid.spec.dtype,
            shape=grid.spec.shape,
            chunk_shape=grid.chunk_shape,
            load=partial(_Array.load, _Array(readers=readers, commit=commit, position=position, threads=threads)),
            threads=threads,
        )
        for position, grid in enumerate(grids(commit.layout))
    }


@dataclass(slots=True, kw_only=True, eq=False)
class _Array:
    readers: ChunkReaders
    commit: Commit
    position: int
    threads: int
    _crcs: npt.NDArray[np.uint32] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, number: int) -> Raw:
        """The elements of a chunk, in this thread's buffer. Raises Corrupt naming array, chunk and file."""
        grid = grids(self.commit.layout)[self.position]
        committed = int(self._committed_crcs()[number])
        payload, crc = self.readers.mine().stride(self.position, number)
        if crc != committed:
            raise self._not_committed()
        sizes = [part.stop - part.start for part in grid.chunk_box(number)]
        data = np.frombuffer(payload, raw_dtype(grid.spec.dtype), count=grid.data_bytes(number) // grid.spec.itemsize)
        return data.reshape(sizes)

    def _committed_crcs(self) -> npt.NDArray[np.uint32]:
        """What stands beside the chunks, once it is proven to be what was committed. A large array has thousands of
        chunks, and in a bucket each is a request: several are under way at a time."""
        with self._lock:
            if self._crcs is None:
                numbers = batched(range(grids(self.commit.layout)[self.position].num_chunks), threads=self.threads)
                parts = run_all(self._stored_crcs, numbers, threads=self.threads, name="ckpt-crcs")
                crcs = np.array([crc for part in parts for crc in part], dtype="<u4")
                if crc32c(crcs.tobytes()) != self.commit.index.content_crcs[self.position]:
                    raise self._not_committed()
                self._crcs = crcs
            return self._crcs

    def _stored_crcs(self, numbers: Sequence[int]) -> list[int]:
        reader = self.readers.mine()
        return [reader.stored_crc(self.position, number) for number in numbers]

    def _not_committed(self) -> Corrupt:
        name, files = self.commit.layout.arrays[self.position].name, self.commit.files(self.position)
        return Corrupt(
            f"array {name!r}, the CRCs beside its chunks, {files}: expected those that were committed, got others",
            hint=DAMAGED_HINT,
            code="array-content",
        )
