"""Some ranks of the reference Behemoth on 32,000, on one node: their true shares at their true offsets.

Every rank has its own staging memory and its plan of 32,000; one store process serves them all, as on a node. The files
are sparse: of each the node writes what its ranks own, at the offsets that they have in a real checkpoint, and
`others` plays the rest. Restores run in this process with the reader that a store process uses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from contenders.others import Held, write_chunk_ends
from contenders.ours import ATTEMPT, Memory, StoreProcess

from behemoth.agent.storewire import Write, Written
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.commit_index import CommitIndex
from behemoth.checkpoint.commit_record import CommitRecord, format_of
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.reading_threads import reading_threads
from behemoth.checkpoint.staging import Stager, unstage
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from behemoth.storage.local import LocalStore

MESH = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
SAVED, RESTORED = 0, 1
"""Generations of the staging memory: a save goes into one, a restore into the other."""


class GiantRanks:
    """Ranks `first` and those that follow, with what each holds in `arrays`: views of the same random memory."""

    def __init__(self, folder: Path, *, first: int, num_ranks: int, num_threads: int) -> None:
        self._layout = model_layout(named_inventory("behemoth-ref"), Recipe(), MESH)
        self._ranks = [Rank(first + number) for number in range(num_ranks)]
        self._threads = num_threads
        self._local = LocalStore(folder)
        self._store = StoreProcess(folder, num_threads=num_threads, num_ranks=num_ranks)
        self._memories = [Memory(self._store, self._layout, rank) for rank in self._ranks]
        self.pool = np.random.default_rng(1).random(max(self._data_bytes()) // 4, dtype=np.float32).view(np.uint8)
        self._arrays = [_arrays(memory, self.pool) for memory in self._memories]
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """What these ranks hold."""
        return sum(self._data_bytes())

    def save(self) -> Mapping[str, float]:
        """Seconds until every rank's copy was staged, and until all was durable."""
        self._step += 1
        begin = time.perf_counter()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._stage, range(len(self._ranks))))
        staged = time.perf_counter()
        for _ in self._ranks:
            self._store.answer(Written)
        return {"stage": staged - begin, "save": time.perf_counter() - begin}

    def fill_in(self) -> float:
        """Play the other ranks; how many bytes of chunks a restore reads for each byte that it needs."""
        held: list[Held] = []
        for memory in self._memories:
            held += zip(memory.plan.spans, memory.arena.crcs(SAVED).tolist(), strict=True)
        write_chunk_ends(self._local, self._prefix, self._layout, held)
        needed = sum(memory.plan.data_bytes for memory in self._memories)
        return sum(_chunk_bytes(memory, self._layout) for memory in self._memories) / needed

    def restore(self) -> float:
        """Seconds until every rank has its arrays back; what it had written must be what it saved."""
        commit = Commit(record=self._record(), layout=self._layout, index=self._index())
        begin = time.perf_counter()
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(lambda number: self._restore(number, commit), range(len(self._ranks))))
        seconds = time.perf_counter() - begin
        for memory in self._memories:
            saved, back = memory.arena.crcs(SAVED), memory.arena.crcs(RESTORED)
            is_owned = np.array([span.is_owned for span in memory.plan.spans])
            if not np.array_equal(saved[is_owned], back[is_owned]):
                raise SystemExit(f"rank {memory.plan.rank}: restored bytes are not those that it saved")
        return seconds

    def close(self) -> None:
        self._local.close()
        self._store.close()
        for memory in self._memories:
            memory.close()

    @property
    def _prefix(self) -> str:
        return step_prefix(Step(self._step), WriteId(f"a1-{self._step}"))

    def _data_bytes(self) -> list[int]:
        return [memory.plan.data_bytes for memory in self._memories]

    def _stage(self, number: int) -> None:
        memory, step, write_id = self._memories[number], Step(self._step), WriteId(f"a1-{self._step}")
        threads = max(1, self._threads // len(self._ranks))
        stager = Stager(memory.arena, memory.plan, self._arrays[number], write_id=write_id, step=step, threads=threads)
        stager.begin(generation=SAVED)
        order = Write(
            job=self._step * len(self._ranks) + number,
            rank=self._ranks[number],
            layout=self._layout.encode(),
            generation=SAVED,
            attempt=ATTEMPT,
            step=step,
            write_id=write_id,
            following=stager.sequence,
        )
        self._store.order(order, memory.fd)
        stager.seal()

    def _restore(self, number: int, commit: Commit) -> None:
        memory = self._memories[number]
        threads = max(1, self._threads // len(self._ranks))
        readers = reading_threads(self._local, commit, threads=threads)
        read_rank(self._local, commit, self._layout, memory.plan, memory.arena, RESTORED, threads=readers)
        unstage(memory.arena, memory.plan, RESTORED, self._arrays[number], threads=threads, is_checked=True)

    def _record(self) -> CommitRecord:
        version, features = format_of(self._layout)
        return CommitRecord(
            format=version,
            required_features=features,
            run="bench",
            step=Step(self._step),
            write_id=WriteId(f"a1-{self._step}"),
            attempt=ATTEMPT,
            mesh=MESH,
            layout_digest=self._layout.digest,
            index_bytes=0,
            index_crc=0,
            data_bytes=self.num_bytes,
            arrays=(),
            committed_us=0,
        )

    def _index(self) -> CommitIndex:
        return CommitIndex(layout=self._layout, metadata=(), content_crcs=())


def _arrays(memory: Memory, pool: np.ndarray) -> dict[str, memoryview]:
    """A buffer for each array that the rank holds, one after another in the pool."""
    sizes: dict[str, int] = {}
    for piece in memory.plan.pieces:
        sizes[piece.name] = sizes.get(piece.name, 0) + piece.nbytes
    ends = np.cumsum(list(sizes.values()))
    return {name: pool[end - size : end].data for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _chunk_bytes(memory: Memory, layout: Layout) -> int:
    chunks = {(span.array, span.chunk) for span in memory.plan.spans}
    return sum(grids(layout)[array].payload_bytes for array, _ in chunks)
