"""Puts the CRC behind the chunks that a rank ends and others began: from its own CRCs and what it is told by those.

Nothing of this is decided here (`chunk_ends` says which), no payload is read again, and nothing is made durable:
`writer`, which calls this, seals the files. Neighbours: `exchange`, through which ranks ask each other, and
`end_proof`, with which the leader judges.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from behemoth.base.errors import BehemothError, Denied, Timeout, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.chunk_ends import ChunkEnds
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc_columns import combined_runs
from behemoth.checkpoint.exchange import OUT_OF_TIME, Exchange, in_turn
from behemoth.checkpoint.grid import Ints, grids
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import END_LEFT
from behemoth.checkpoint.threads import run_all
from behemoth.ports import Part, WritesRanges

_log = logging.getLogger(__name__)
ASK_THREADS = 8
"""Questions wait for other nodes and do not compute."""
END_THREADS = 16
"""Files into which ends of chunks are written at a time. Each end may be a part of a page that others wrote, which the
file system has to read first: it waits more than it works."""
LEAST_WAIT_S = 5.0
"""For ranks that have not written their part yet, after this one has. Those of a save end at about the same time."""


def chunk_crcs(write: RankWrite, ends: ChunkEnds, exchange: Exchange, *, deadline_s: float) -> Ints:
    """The CRC-32C of the data of each chunk, from all that wrote a part of them, the rank itself too; END_LEFT where
    one of these could not be asked, or has not answered until `deadline_s` (of the monotonic clock).

    Blocks until then. Raises Conflict when the write is cancelled, and what else others answer.
    """
    found = np.full(len(ends.rank), END_LEFT, dtype=np.int64)
    rows_of = dict(ends.by_rank())
    silent: list[BehemothError] = []

    def is_over() -> bool:
        if time.monotonic() > deadline_s:
            raise Timeout("expected CRCs of chunks that it has a part of, got none in time", code=OUT_OF_TIME)
        return write.cancelled()

    def ask(rank: Rank) -> None:
        write.go_on()
        rows = rows_of[rank]
        try:
            found[rows] = exchange.crcs(rank, ends.fragments(rows), cancelled=is_over)
        except (Unavailable, Timeout, Denied) as error:  # Denied by another run's node at an old port
            silent.append(type(error)(f"rank {rank}: {error.message}"))

    ranks = in_turn(rows_of, write.plan.rank, write.layout.mesh.num_ranks)
    run_all(ask, ranks, threads=ASK_THREADS, name="ckpt-ask")
    is_known = np.logical_and.reduceat(found != END_LEFT, ends.first[:-1]) if len(found) else np.zeros(0, dtype=bool)
    if silent:
        _log.warning(
            "rank %d: the ends of %d of %d chunks are left to the leader, since %d ranks did not tell their CRCs: %s",
            write.plan.rank,
            np.count_nonzero(~is_known),
            len(is_known),
            len(silent),
            silent[0].message,
        )
    crcs = combined_runs(found.astype(np.uint32), ends.length, ends.first)
    return np.where(is_known, crcs.astype(np.int64), END_LEFT)


def write_ends(store: WritesRanges, write: RankWrite, ends: ChunkEnds, crcs: Ints) -> None:
    """Padding, CRC and gap behind each chunk of which the CRC of its data is known. Blocks. Raises Conflict when
    cancelled, and the store's errors."""
    of_files: dict[tuple[int, int], list[Part]] = {}
    for span, crc in zip(ends.spans, crcs.tolist(), strict=True):
        if crc == END_LEFT:
            continue
        tail = chunk_tail(grids(write.layout)[span.array], crc, span.offset + span.length)
        part = Part(offset_bytes=span.shard_offset + span.length, buffers=[tail])
        of_files.setdefault((span.array, span.shard), []).append(part)

    def write_one(file: tuple[int, int]) -> None:
        write.go_on()
        size_bytes = grids(write.layout)[file[0]].file_bytes
        store.write_parts(write.shard_key(*file), size_bytes=size_bytes, parts=of_files[file])

    run_all(write_one, of_files, threads=END_THREADS, name="ckpt-end")
