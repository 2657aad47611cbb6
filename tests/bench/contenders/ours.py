"""Ours: one node's ranks with their staging memory and a real store process, as an agent has them, and the commit.

A save lasts from the call to the commit and is stage, write and commit; the store process writes while the state is
staged. A restore comes from the node's memory, or from files when that is lost. CRCs are computed and checked always.
Neighbours: `state`, `raw`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from contenders.state import Arrays, Shapes

from behemoth.agent.child import Child
from behemoth.agent.storewire import STORE_REPORTS, OpenStore, Prepare, Prepared, RestoreSource, Write, Written
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import Stager, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import Part
from behemoth.sdk.cold_files import read_cold_files
from behemoth.sdk.files import read_files
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.wire.ends import Peer as Session
from behemoth.wire.ends import send_with
from behemoth.wire.frames import encode_frame

A = TypeVar("A", Prepared, Written)
LIMIT_S = 600.0
ATTEMPT = Attempt(1)


class StoreProcess:
    """The store process of a node, told what an agent tells it."""

    def __init__(self, folder: Path, *, num_threads: int, num_ranks: int) -> None:
        self._child = Child.start("behemoth.wiring.store", environment=os.environ, own_session=False)
        self._sending = threading.Lock()
        self._peer = Session(self._child.sock, STORE_REPORTS)
        self._peer.send(OpenStore(job=0, url=str(folder), threads=num_threads, num_ranks=num_ranks), timeout_s=LIMIT_S)

    @property
    def pid(self) -> int:
        return self._child.pid

    def order(self, order: Prepare | Write, memory_fd: int) -> None:
        frame = encode_frame(order)
        with self._sending:
            select.select((), (self._child.sock,), ())  # `send_with` does not wait for room
            sent_bytes = send_with(self._child.sock, frame, (memory_fd,))
            self._child.sock.sendall(frame[sent_bytes:])  # a giant run's layout is larger than the socket's buffer

    def answer(self, kind: type[A]) -> A:
        answer = self._peer.receive(timeout_s=LIMIT_S, what="the store process")
        if not isinstance(answer, kind):
            raise SystemExit(f"store process: expected {kind.__name__}, got {answer}")
        return answer

    def close(self) -> None:
        self._peer.close()
        self._child.kill()


class Memory:
    """The staging memory of one rank: formatted by the store process, mapped here."""

    def __init__(self, store: StoreProcess, layout: Layout, rank: Rank) -> None:
        self.plan = plan_rank(layout, rank)
        self.fd = os.memfd_create(f"bench-arena-{rank}", os.MFD_ALLOW_SEALING)
        store.order(Prepare(job=0, rank=rank, layout=layout.encode(), is_new=True, source=None), self.fd)
        store.answer(Prepared)
        self.arena = Arena.open(self.fd)

    def close(self) -> None:
        self.arena.close()
        os.close(self.fd)


class Nowhere:
    """A store that takes everything and keeps nothing: what is left of a save is its work in memory."""

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        """Thrown away."""

    def seal(self, keys: Sequence[str]) -> None:
        """There is nothing to make durable."""


class Ours:
    """One rank that holds everything. Results are seconds by phase. Made before the arrays are: for a moment its memory
    is all that the machine has to give."""

    def __init__(self, shapes: Shapes, folder: Path, *, num_threads: int) -> None:
        self._arrays: dict[str, memoryview] = {}
        self._folder = folder
        self._threads = num_threads
        self._layout = Layout(
            mesh=Mesh(),
            arrays=tuple(ArraySpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()),
        )
        self._store = StoreProcess(folder, num_threads=num_threads, num_ranks=1)
        self._memory = Memory(self._store, self._layout, Rank(0))
        self._step = 0

    @property
    def store_pid(self) -> int:
        return self._store.pid

    @property
    def staging(self) -> memoryview:
        """Where a save copies to."""
        return self._memory.arena.filling(0)

    @property
    def staging_bytes(self) -> int:
        """The budget: all memory that ours takes beside the program's own."""
        return os.fstat(self._memory.fd).st_size

    def bind(self, arrays: Arrays) -> None:
        """What to save from and restore into."""
        self._arrays = {name: array.reshape(-1).view(np.uint8).data for name, array in arrays.items()}

    def copy(self) -> float:
        """Seconds of a plain copy of every array into the staging memory, where a save would put it."""
        data = np.frombuffer(self._memory.arena.filling(0), np.uint8)
        begin = time.perf_counter()
        for piece in self._memory.plan.pieces:
            np.copyto(data[piece.arena_offset : piece.arena_offset + piece.nbytes], self._arrays[piece.name])
        return time.perf_counter() - begin

    def save(self, *, is_staged_before: bool = False) -> Mapping[str, float]:
        """What worker, store process and coordinator do, one after another as far as they do not overlap.

        With `is_staged_before` the store process is told only when all is staged, and the save is counted from there:
        what goes on while training does.
        """
        self._step += 1
        step, write_id = Step(self._step), WriteId(f"a1-{self._step}")
        stager = self._stager(step, write_id)
        begin = time.perf_counter()
        stager.begin(generation=0)
        if is_staged_before:
            stager.seal()
            begin = time.perf_counter()
        order = Write(
            job=self._step,
            rank=Rank(0),
            layout=self._layout.encode(),
            generation=0,
            attempt=ATTEMPT,
            step=step,
            write_id=write_id,
            following=stager.sequence,
        )
        self._store.order(order, self._memory.fd)
        if not is_staged_before:
            stager.seal()
        staged = time.perf_counter()
        written = self._store.answer(Written)
        received = time.perf_counter()
        store = LocalStore(self._folder)
        candidate = Candidate(run="bench", step=step, write_id=write_id, attempt=ATTEMPT)
        commit(store, candidate, self._layout, [Receipt.decode(written.receipt)], previous=None)
        end = time.perf_counter()
        store.close()
        return {"save": end - begin, "stage": staged - begin, "write": received - staged, "commit": end - received}

    def save_in_memory(self) -> None:
        """Into the staging memory alone: staged, every CRC computed behind the copy, a whole and verified snapshot."""
        self._step += 1
        step, write_id = Step(self._step), WriteId(f"a1-{self._step}")
        memory, layout = self._memory, self._layout
        stager = self._stager(step, write_id)
        stager.begin(generation=0)
        with ThreadPoolExecutor(1) as pool:
            checked = pool.submit(
                write_rank,
                Nowhere(),  # type: ignore[arg-type]  # a rank that writes alone asks no more of it
                RankWrite(
                    prefix="nowhere",
                    layout=layout,
                    plan=memory.plan,
                    arena=memory.arena,
                    generation=0,
                    attempt=ATTEMPT,
                    threads=self._threads,
                    cancelled=lambda: False,
                    following=stager.sequence,
                ),
            )
            stager.seal()
            checked.result()

    def load_from_memory(self) -> None:
        """Out of the staging memory, every CRC checked."""
        unstage(self._memory.arena, self._memory.plan, 0, self._arrays, threads=self._threads)

    def restore(self, *, is_remembered: bool) -> Mapping[str, float]:
        """From the node's memory, as after the death of a worker, or from the store, as after that of an agent."""
        source = RestoreSource(
            step=Step(self._step),
            write_id=WriteId(f"a1-{self._step}"),
            held_in=0 if is_remembered else None,
            spare=0,
        )
        begin = time.perf_counter()
        order = Prepare(job=0, rank=Rank(0), layout=self._layout.encode(), is_new=False, source=source)
        self._store.order(order, self._memory.fd)
        prepared = self._store.answer(Prepared)
        read = time.perf_counter()
        assert (prepared.origin == "memory") is is_remembered
        arena, plan = self._memory.arena, self._memory.plan
        if prepared.folder:
            from_files = read_cold_files if prepared.is_cold else read_files
            from_files(prepared.folder, self._layout, plan, self._arrays, threads=self._threads)
        else:
            unstage(arena, plan, 0, self._arrays, threads=self._threads, is_checked=not is_remembered)
        end = time.perf_counter()
        return {"restore": end - begin, "read": read - begin, "unstage": end - read}

    def cpu_s(self) -> float:
        """User and system seconds of the store process so far."""
        fields = Path(f"/proc/{self._store.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._store.close()
        self._memory.close()

    def _stager(self, step: Step, write_id: WriteId) -> Stager:
        return Stager(
            self._memory.arena, self._memory.plan, self._arrays, write_id=write_id, step=step, threads=self._threads
        )
