"""Seconds and GB/s of a restore from own memory, from a peer's memory and from disk, and what each reads of the store.

    .venv/bin/python tests/bench/restore_tiers.py [--quick] [-o json] [--dir DIR] [--rounds N]

Ours is the store process's own code (`agent.preparing`) and then the worker's copy out of staging memory (`unstage`),
with every CRC checked once on the way. Beside it the same bytes by the same threads in the same blocks, moved raw and
believed: memcpy; `sendfile` on the other process's side and `recv_into` on this one, then memcpy; `preadv`, then
memcpy. All memory is warm. `into memory` leaves out the last copy. The peer is a process of its own on this machine, so
its cycles come off the same cores, and TCP goes over the loopback device. Files are in the page cache (`cached`) or not
(`cold`), and are read through staging memory in both cases, as by a rank that found cached files damaged; the way of
cached files that leaves staging memory out stands in `checkpoint_local`. The last rows count what four nodes without
memory read of one store, metadata included, when each chunk is read once and passed on, beside each rank for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from bench_table import Row, alone, alternate, arguments, beside, show
from page_states import cache, drop, each_file

sys.path.append(str(Path(__file__).parent / "programs"))
sys.path.append(str(Path(__file__).parents[1]))  # the fleet is the tests' own
import tiers_scene as scene
from peer_memory import RANGE

from agent.peers.shared_fleet import MESHES, Saved, fleet, needed_bytes
from behemoth.agent.memories import Memories
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.peers.snapshots import PeerSnapshot
from behemoth.agent.preparing import Preparing
from behemoth.agent.storewire import Prepare, Prepared, Source
from behemoth.base.ids import Attempt, Rank, Slot
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.staging import stage, unstage
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.writer import write_rank
from behemoth.storage.local import LocalStore

NUM_LAYERS = 8
THREADS = 2
PROGRAM = Path(__file__).parent / "programs" / "peer_memory.py"
OURS = "behemoth"
RAW = {"own memory": "memcpy", "a peer": "raw TCP", "disk, cached": "raw preadv", "disk, cold": "raw preadv"}


class OtherNode:
    """The process that has a peer's memory."""

    def __init__(self, num_layers: int) -> None:
        command = [sys.executable, str(PROGRAM), str(num_layers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.address = PeerAddress(node=scene.ASKED, host="127.0.0.1", port=ports["peer"])
        self.raw_port = int(ports["raw"])

    def close(self) -> None:
        self._process.communicate(timeout=30)  # the end of its input is the order to end


class ThisNode:
    """A rank's staging memory with a committed checkpoint in it and in a store, and the program's arrays."""

    def __init__(self, folder: Path, num_layers: int, other: OtherNode) -> None:
        self._layout, self._plan = scene.layout(num_layers), scene.plan(num_layers)
        self.num_bytes = self._plan.data_bytes
        self._fd = os.memfd_create("restore-tiers", os.MFD_ALLOW_SEALING)
        self._memories = Memories(num_ranks=1)
        self._arena = self._memories.mapped(Rank(0), self._fd, new=self._plan)
        self._client = PeerClient(scene.identity(scene.ASKER))
        self._store = LocalStore(folder)
        self._preparing = Preparing(
            self._memories,
            store=lambda: self._store,
            peer=lambda _slot, plan, write_id, step: PeerSnapshot(
                self._client, other.address, plan, write_id=write_id, step=step
            ),
            shared=lambda: None,
            threads=THREADS,
            ranks_per_node=1,
            run_name="bench",
        )
        self._targets = {one.name: np.ones(one.shape, dtype=np.float32) for one in self._layout.arrays}
        self._save()

    def restore(self, origin: str) -> tuple[Prepared, float, float]:
        """From this tier; seconds until the bytes are in staging memory, and until the program has them."""
        source = Source(
            step=scene.STEP,
            write_id=scene.WRITE_ID,
            held_in=0 if origin == "memory" else None,
            spare=1,
            must_read=origin == "store",
            holders=(Slot(1),) if origin == "peer" else (),
        )
        order = Prepare(job=1, rank=Rank(0), layout=self._layout.encode(), is_new=False, source=source)
        start_s = time.perf_counter()
        prepared = self._preparing.prepare(order, self._fd)
        assert prepared.origin == origin, prepared
        assert prepared.generation is not None
        ready_s = time.perf_counter()
        unstage(
            self._arena,
            self._plan,
            prepared.generation,
            self._targets,
            threads=THREADS,
            is_checked=origin != "memory",
        )
        return prepared, ready_s - start_s, time.perf_counter() - start_s

    def close(self) -> None:
        self._client.close()
        self._store.close()

    def _save(self) -> None:
        """Only its size counts: the peer's bytes are others, and random as well."""
        rng = np.random.default_rng(2)
        arrays = {name: rng.integers(0, 2**32, array.size, dtype=np.uint32) for name, array in self._targets.items()}
        stage(self._arena, self._plan, arrays, scene.WRITE_ID, scene.STEP, generation=0)
        receipt = write_rank(
            self._store,
            step_prefix(scene.STEP, scene.WRITE_ID),
            self._layout,
            self._plan,
            self._arena,
            0,
            attempt=Attempt(1),
            threads=THREADS,
            cancelled=lambda: False,
        )
        candidate = Candidate(run="bench", step=scene.STEP, write_id=scene.WRITE_ID, attempt=Attempt(1))
        commit(self._store, candidate, self._layout, [receipt], previous=None)


class Raw:
    """The same moves between warm buffers of the same size, by the same threads, without asking what is moved."""

    def __init__(self, folder: Path, num_bytes: int, other: OtherNode) -> None:
        self._staged = np.ones(num_bytes, dtype=np.uint8)
        self._target = np.ones(num_bytes, dtype=np.uint8)
        self._links = [socket.create_connection(("127.0.0.1", other.raw_port)) for _ in range(THREADS)]
        files = sorted((one.stat().st_size, one) for one in folder.rglob("*") if one.is_file())
        self._files = [path for size, path in files if size > scene.BLOCK_BYTES]

    def copy_out(self) -> None:
        def copy(start: int) -> None:
            part = slice(start, start + scene.BLOCK_BYTES)
            np.copyto(self._target[part], self._staged[part])

        run_all(copy, self._starts(), threads=THREADS, name="raw")

    def receive(self) -> None:
        shares = [self._starts()[number::THREADS] for number in range(THREADS)]

        def work(number: int) -> None:
            link = self._links[number]
            for start in shares[number]:
                view = memoryview(self._staged[start : start + scene.BLOCK_BYTES])
                link.sendall(RANGE.pack(start, len(view)))
                while view:
                    view = view[link.recv_into(view) :]

        run_all(work, range(THREADS), threads=THREADS, name="raw")

    def read(self) -> None:
        """As many bytes as ours, out of the same files."""
        share = len(self._staged) // len(self._files)

        def work(item: tuple[int, int]) -> None:
            number, start = item
            begin = number * share + start
            view = memoryview(self._staged[begin : begin + min(scene.BLOCK_BYTES, share - start)])
            while view:
                got = os.preadv(self._fds[number], [view], begin - number * share)
                view, begin = view[got:], begin + got

        self._fds = [os.open(path, os.O_RDONLY) for path in self._files]
        items = [(number, start) for number in range(len(self._fds)) for start in range(0, share, scene.BLOCK_BYTES)]
        run_all(work, items, threads=THREADS, name="raw")
        for fd in self._fds:
            os.close(fd)

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _starts(self) -> Sequence[int]:
        return range(0, len(self._staged), scene.BLOCK_BYTES)


def main() -> int:
    options = arguments(__doc__ or "", extend=_own_options)
    num_layers = 1 if options.quick else NUM_LAYERS
    num_rounds = options.rounds or (3 if options.quick else 15)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="behemoth-bench-", dir=options.dir)))
        other = OtherNode(num_layers)
        stack.callback(other.close)
        here = ThisNode(folder, num_layers, other)
        stack.callback(here.close)
        raw = Raw(folder, here.num_bytes, other)
        stack.callback(raw.close)
        for tier in RAW:
            print(tier, file=sys.stderr, flush=True)
            rows += _rows(tier, here, raw, folder, num_rounds)
    rows += _over_read_rows()
    notes = [
        f"{num_layers * 64} MiB of one rank, {THREADS} threads on each side, blocks of {scene.BLOCK_BYTES >> 20} MiB",
        "GB/s: a ratio above 1 means that ours is faster; ours checks the CRC of every byte, raw does not",
    ]
    show("restore_tiers", rows, options, notes=notes)
    return 0


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, help="where the checkpoint lies (default: the temporary folder)")
    parser.add_argument("--rounds", type=int, default=None, help="counted rounds of each tier (default: 15, quick 3)")


def _rows(tier: str, here: ThisNode, raw: Raw, folder: Path, num_rounds: int) -> list[Row]:
    origin = {"own memory": "memory", "a peer": "peer"}.get(tier, "store")
    fetch: Callable[[], None] = {"memory": lambda: None, "peer": raw.receive, "store": raw.read}[origin]
    store_bytes: list[float] = []

    def ours() -> Mapping[str, float]:
        with _files(folder, tier):
            prepared, into_s, whole_s = here.restore(origin)
        store_bytes.append(prepared.store_bytes / here.num_bytes)
        return {"into": here.num_bytes / into_s / 1e9, "whole": whole_s, "rate": here.num_bytes / whole_s / 1e9}

    def theirs() -> Mapping[str, float]:
        with _files(folder, tier):
            start_s = time.perf_counter()
            fetch()
            ready_s = time.perf_counter()
            raw.copy_out()
            end_s = time.perf_counter()
        return {
            "into": here.num_bytes / max(ready_s - start_s, 1e-9) / 1e9,
            "whole": end_s - start_s,
            "rate": here.num_bytes / (end_s - start_s) / 1e9,
        }

    samples = alternate({OURS: ours, RAW[tier]: theirs}, num_rounds=num_rounds)
    mine, peers = samples[OURS], samples[RAW[tier]]
    rows = [
        beside(f"restore from {tier}", "s", mine["whole"], RAW[tier], peers["whole"]),
        beside(f"restore from {tier}", "GB/s", mine["rate"], RAW[tier], peers["rate"]),
    ]
    if origin != "memory":
        rows.append(beside(f"into memory from {tier}", "GB/s", mine["into"], RAW[tier], peers["into"]))
    return [*rows, alone(f"store bytes / needed, from {tier}", "ratio", store_bytes[1:])]


def _over_read_rows() -> list[Row]:
    """Four nodes that have lost their memory: what they read of the store together, and each rank for itself."""
    rows = []
    for name, (first, second) in MESHES.items():
        together, apart = Saved(first), Saved(first)
        with fleet(together.store) as nodes:
            together.restore_all(nodes, second)
        apart.restore_alone(second)
        shared, alone_ = (one.store.read_bytes / needed_bytes(first) for one in (together, apart))
        rows.append(beside(f"store bytes / needed, 4 nodes, {name}", "ratio", [shared], "each rank alone", [alone_]))
    return rows


@contextmanager
def _files(folder: Path, tier: str) -> Iterator[None]:
    """Files in the state that the tier is about; the time for that is nobody's."""
    if tier.startswith("disk"):
        each_file(folder, cache if tier.endswith("cached") else drop)
    yield


if __name__ == "__main__":
    sys.exit(main())
