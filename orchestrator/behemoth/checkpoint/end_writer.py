"""Puts the CRC behind the chunks that a rank ends and others began: from its own CRCs and what it is told by those.

Nothing of this is decided here (`chunk_ends` says which), no payload is read again, and nothing is made durable:
`writer`, which calls this, seals the files. Neighbours: `exchange`, through which ranks ask each other, and
`end_proof`, with which the leader judges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from behemoth.base.errors import Timeout
from behemoth.base.ids import Rank
from behemoth.checkpoint.chunk_ends import ChunkEnds
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import combined_runs
from behemoth.checkpoint.exchange import Exchange, in_turn
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.threads import run_all
from behemoth.ports import Part, WritesRanges

ASK_THREADS = 8
"""Questions wait for other nodes and do not compute."""
END_THREADS = 16
"""Files into which ends of chunks are written at a time. Each end may be a part of a page that others wrote, which the
file system has to read first: it waits more than it works."""
WAIT_S = 60.0
"""How long nobody may answer. Ranks of a save end at about the same time; whoever takes longer than this, or has
forgotten the write with its store process, is not waited for: the leader knows the CRCs too."""


def chunk_crcs(write: RankWrite, ends: ChunkEnds, exchange: Exchange) -> list[int]:
    """The CRC-32C of the data of each chunk, from all that wrote a part of them; the rank itself answers too.

    Blocks until all who wrote a part of them have written it. Raises Conflict when the write is cancelled, Unavailable
    or Timeout when others cannot be asked, and what else they answer.
    """
    found = np.zeros(len(ends.rank), dtype=np.int64)
    rows_of = dict(ends.by_rank())
    patience = _Patience(write)

    def ask(rank: Rank) -> None:
        rows = rows_of[rank]
        found[rows] = exchange.crcs(rank, ends.fragments(rows), cancelled=patience.is_over)
        patience.heard()

    ranks = in_turn(rows_of, write.plan.rank, write.layout.mesh.num_ranks)
    run_all(ask, ranks, threads=ASK_THREADS, name="ckpt-ask")
    return combined_runs(found.tolist(), ends.length.tolist(), pairwise(ends.first.tolist()))


def write_ends(store: WritesRanges, write: RankWrite, ends: ChunkEnds, crcs: Sequence[int]) -> None:
    """Padding, CRC and gap behind each chunk; `crcs`: of their data. Blocks. Raises Conflict when cancelled, and the
    store's errors."""
    of_files: dict[tuple[int, int], list[Part]] = {}
    for span, crc in zip(ends.spans, crcs, strict=True):
        tail = chunk_tail(grids(write.layout)[span.array], crc, span.offset + span.length)
        part = Part(offset_bytes=span.shard_offset + span.length, buffers=[tail])
        of_files.setdefault((span.array, span.shard), []).append(part)

    def write_one(file: tuple[int, int]) -> None:
        write.go_on()
        size_bytes = grids(write.layout)[file[0]].file_bytes
        store.write_parts(write.shard_key(*file), size_bytes=size_bytes, parts=of_files[file])

    run_all(write_one, of_files, threads=END_THREADS, name="ckpt-end")


class _Patience:
    """Ends a wait when the write is cancelled, or with Timeout when nobody has answered for too long."""

    def __init__(self, write: RankWrite) -> None:
        self._write = write
        self._heard_s = time.monotonic()

    def heard(self) -> None:
        self._heard_s = time.monotonic()

    def is_over(self) -> bool:
        if time.monotonic() - self._heard_s > WAIT_S:
            raise Timeout(f"rank {self._write.plan.rank}: expected CRCs of other ranks within {WAIT_S:g} s, got none")
        return self._write.cancelled()
