"""The leader's own work once all ranks have written: from their receipts, as they lie in memory, to the record.

Seconds of the clock on as many threads as there are processors, beside those of all processors together, which say what
a run with fewer would take. `contenders.leader` says what the receipts are and what stands in for a store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench_table import Row, alone
from contenders import leader
from contenders.resident import peak_growth_bytes

from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.proof import prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.shard_proof import check_shards


def rows_of(layout: Layout, num_rounds: int) -> list[Row]:
    threads, told = len(os.sched_getaffinity(0)), leader.receipts_of(layout)
    where, store = f"leader, {len(told)} receipts", leader.store_of(layout)
    peak_bytes = peak_growth_bytes(lambda: leader.committed(store, layout, leader.decoded(told), threads=threads))
    decoding = [_spent(lambda: leader.decoded(told)) for _ in range(num_rounds)]
    receipts = leader.decoded(told)
    committing = [_spent(lambda: leader.committed(store, layout, receipts, threads=threads)) for _ in range(num_rounds)]
    return [
        alone(f"{where}: their bytes", "MB", [sum(map(len, told)) / 1e6]),
        *_rows(f"{where}: decoded", decoding),
        *_rows(f"{where}: proven, completed, record made", committing),
        alone(f"{where}: memory for both", "GB", [peak_bytes / 1e9]),
        *_rows_of_objects(replace(layout, sharding="box"), receipts, num_rounds, threads),
    ]


def _rows_of_objects(boxes: Layout, of_files: Sequence[Receipt], num_rounds: int, threads: int) -> list[Row]:
    receipts, store = leader.of_objects(boxes, of_files), leader.store_of(boxes)
    proof = prove(leader.CANDIDATE, boxes, receipts, are_files=False, threads=threads)
    checking = [_spent(lambda: check_shards(boxes, proof, receipts)) for _ in range(num_rounds)]
    committing = [_spent(lambda: leader.committed(store, boxes, receipts, threads=threads)) for _ in range(num_rounds)]
    where = f"leader, {sum(grid.num_shards for grid in grids(boxes))} objects"
    return [*_rows(f"{where}: all checked", checking), *_rows(f"{where}: proven, checked, record made", committing)]


class _Spent(NamedTuple):
    """Seconds of the clock, and of all processors."""

    wall_s: float
    cpu_s: float


def _spent(work: Callable[[], object]) -> _Spent:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return _Spent(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def _rows(what: str, rounds: Sequence[_Spent]) -> list[Row]:
    return [
        alone(what, "s", [one.wall_s for one in rounds]),
        alone("  of all processors", "s", [one.cpu_s for one in rounds]),
    ]
