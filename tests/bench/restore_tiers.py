"""Seconds and GB/s of a restore from own memory, from a peer's memory, from the node's own disk and from files of the
store, and what each reads of the store.

    .venv/bin/python tests/bench/restore_tiers.py [--quick] [-o json] [--dir DIR] [--rounds N]

Ours is the store process's own code (`agent.preparing`) and then the worker's copy out of staging memory (`unstage`),
with every CRC checked once on the way. Beside it the same bytes by the same threads in the same blocks, moved raw and
believed: memcpy; `sendfile` on the other process's side and `recv_into` on this one, then memcpy; `preadv`, past the
page cache from the own disk and through it from the store's files, then memcpy. All memory is warm. `into memory`
leaves out the last copy. The peer is a process of its own on this machine, so its cycles come off the same cores, and
TCP goes over the loopback device. The store's files are in the page cache (`cached`) or not (`cold`), and are read
through staging memory in both cases, as by a rank that found cached files damaged; the way of cached files that leaves
staging memory out stands in `checkpoint_local`. The own disk's file is cold, on the same disk as the store's. The last
rows count what four nodes without memory read of one store, metadata included, when each chunk is read once and passed
on, beside each rank for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_table import Row, alone, alternate, arguments, beside, show
from contenders.raw_moves import FileRange, RawMoves
from page_states import cache, drop, each_file
from programs import tiers_scene as scene

sys.path.append(str(Path(__file__).parents[1]))  # the fleet is the tests' own
from agent.peers.shared_fleet import MESHES, Saved, fleet, needed_bytes
from behemoth.agent.memories import Memories
from behemoth.agent.own_disk import OwnDisk
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.peers.snapshots import PeerSnapshot
from behemoth.agent.preparing import Preparing
from behemoth.agent.storewire import DiskService, KeepOnDisk, Prepare, Prepared, RestoreSource
from behemoth.base.ids import Attempt, Rank, RunUid, Slot
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.snapshot_format import data_offset
from behemoth.checkpoint.staging import stage, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_private
from behemoth.wire.setup import LocalDisk

NUM_LAYERS = 8
THREADS = 2
HERE = Path(__file__).parent
OURS = "behemoth"


class Tier(NamedTuple):
    """Where a restore says that it comes from, what it stands beside, and what is done to the files before each."""

    origin: str
    peer: str
    page_state: Callable[[int], None] | None


TIERS = {
    "own memory": Tier("memory", "memcpy", None),
    "a peer": Tier("peer", "raw TCP", None),
    "own disk": Tier("disk", "raw O_DIRECT", drop),
    "disk, cached": Tier("store", "raw preadv", cache),
    "disk, cold": Tier("store", "raw preadv", drop),
}


class OtherNode:
    """The process that has a peer's memory."""

    def __init__(self, num_layers: int) -> None:
        command = [sys.executable, "-m", "programs.peer_memory", str(num_layers)]
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        env = os.environ | {"PYTHONPATH": path}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.address = PeerAddress(node=scene.ASKED, host="127.0.0.1", port=ports["peer"])
        self.raw_port = int(ports["raw"])

    def close(self) -> None:
        self._process.communicate(timeout=30)  # the end of its input is the order to end


class ThisNode:
    """A rank's staging memory with a committed checkpoint in it, in a store and on the node's own disk, and the
    program's arrays."""

    def __init__(self, folder: Path, num_layers: int, other: OtherNode) -> None:
        self._layout, self._plan = scene.layout(num_layers), scene.plan(num_layers)
        self.num_bytes = self._plan.data_bytes
        self._fd = os.memfd_create("restore-tiers", os.MFD_ALLOW_SEALING)
        self._memories = Memories(num_ranks=1)
        self._arena = self._memories.mapped(Rank(0), self._fd, new=self._plan)
        self._client = PeerClient(scene.identity(scene.ASKER))
        self._folder, self._disk_folder = folder / "store", folder / "own-disk"
        self._store = LocalStore(self._folder)
        self._disk_store = open_private(str(self._disk_folder))
        self._disk = self._own_disk()
        preparing = partial(
            Preparing,
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
        self._preparing, self._with_disk = preparing(), preparing(disk=self._disk)
        self._targets = {one.name: np.ones(one.shape, dtype=np.float32) for one in self._layout.arrays}
        self._save()

    def restore(self, origin: str) -> tuple[Prepared, float, float]:
        """From this tier; seconds until the bytes are in staging memory, and until the program has them."""
        source = RestoreSource(
            step=scene.STEP,
            write_id=scene.WRITE_ID,
            held_in=0 if origin == "memory" else None,
            spare=1,
            must_read=origin == "store",
            holders=(Slot(1),) if origin == "peer" else (),
        )
        order = Prepare(job=1, rank=Rank(0), layout=self._layout.encode(), is_new=False, source=source)
        preparing = self._with_disk if origin == "disk" else self._preparing  # must_read does not skip the disk
        start_s = time.perf_counter()
        prepared = preparing.prepare(order, self._fd)
        assert prepared.origin == origin, prepared
        assert prepared.generation is not None
        ready_s = time.perf_counter()
        unstage(
            self._arena,
            self._plan,
            prepared.generation,
            {name: array.data for name, array in self._targets.items()},
            threads=THREADS,
            is_checked=origin != "memory",
        )
        return prepared, ready_s - start_s, time.perf_counter() - start_s

    def store_ranges(self) -> list[FileRange]:
        """As many bytes as a restore reads, out of the same files."""
        files = sorted((one.stat().st_size, one) for one in self._folder.rglob("*") if one.is_file())
        large = [path for size, path in files if size > scene.BLOCK_BYTES]
        return [FileRange(path, 0, self.num_bytes // len(large)) for path in large]

    def disk_range(self) -> FileRange:
        """The snapshot's data on the own disk."""
        (path,) = self._disk_folder.rglob("rank-*")
        return FileRange(path, data_offset(self._plan), self.num_bytes)

    def close(self) -> None:
        self._client.close()
        self._store.close()
        self._disk_store.close()

    def _own_disk(self) -> OwnDisk:
        disk = LocalDisk(path=str(self._disk_folder))
        service = DiskService(disk=disk, folder="bench/n0", run_uid=RunUid("bench"))
        return OwnDisk(service, self._disk_store, self._memories, num_ranks=1, is_writing=lambda: False)

    def _save(self) -> None:
        """Only its size counts: the peer's bytes are others, and random as well."""
        rng = np.random.default_rng(2)
        arrays = {
            name: rng.integers(0, 2**32, array.size, dtype=np.uint32).data for name, array in self._targets.items()
        }
        stage(self._arena, self._plan, arrays, scene.WRITE_ID, scene.STEP, generation=0)
        receipt = write_rank(
            self._store,
            RankWrite(
                prefix=step_prefix(scene.STEP, scene.WRITE_ID),
                layout=self._layout,
                plan=self._plan,
                arena=self._arena,
                generation=0,
                attempt=Attempt(1),
                threads=THREADS,
                cancelled=lambda: False,
            ),
        )
        candidate = Candidate(run="bench", step=scene.STEP, write_id=scene.WRITE_ID, attempt=Attempt(1))
        commit(self._store, candidate, self._layout, [receipt], previous=None)
        keep = KeepOnDisk(job=1, rank=Rank(0), layout=self._layout.encode(), write_id=scene.WRITE_ID, step=scene.STEP)
        self._disk.keep(keep, self._fd, cancelled=lambda: False)


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
        raw = RawMoves(here.num_bytes, other.raw_port, num_threads=THREADS)
        stack.callback(raw.close)
        for name, tier in TIERS.items():
            print(name, file=sys.stderr, flush=True)
            rows += _rows(name, tier, here, raw, folder, num_rounds)
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


def _rows(name: str, tier: Tier, here: ThisNode, raw: RawMoves, folder: Path, num_rounds: int) -> list[Row]:
    fetch: dict[str, Callable[[], None]] = {
        "memory": lambda: None,
        "peer": raw.receive,
        "disk": partial(raw.read, [here.disk_range()], is_direct=True),
        "store": partial(raw.read, here.store_ranges(), is_direct=False),
    }
    store_bytes: list[float] = []

    def prepare_files() -> None:
        if tier.page_state is not None:
            each_file(folder, tier.page_state)

    def ours() -> Mapping[str, float]:
        prepare_files()
        prepared, into_s, whole_s = here.restore(tier.origin)
        store_bytes.append(prepared.store_bytes / here.num_bytes)
        return {"into": here.num_bytes / into_s / 1e9, "whole": whole_s, "rate": here.num_bytes / whole_s / 1e9}

    def theirs() -> Mapping[str, float]:
        prepare_files()
        start_s = time.perf_counter()
        fetch[tier.origin]()
        ready_s = time.perf_counter()
        raw.copy_out()
        end_s = time.perf_counter()
        return {
            "into": here.num_bytes / max(ready_s - start_s, 1e-9) / 1e9,
            "whole": end_s - start_s,
            "rate": here.num_bytes / (end_s - start_s) / 1e9,
        }

    samples = alternate({OURS: ours, tier.peer: theirs}, num_rounds=num_rounds)
    mine, peers = samples[OURS], samples[tier.peer]
    rows = [
        beside(f"restore from {name}", "s", mine["whole"], tier.peer, peers["whole"]),
        beside(f"restore from {name}", "GB/s", mine["rate"], tier.peer, peers["rate"]),
    ]
    if tier.origin != "memory":
        rows.append(beside(f"into memory from {name}", "GB/s", mine["into"], tier.peer, peers["into"]))
    return [*rows, alone(f"store bytes / needed, from {name}", "ratio", store_bytes[1:])]


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


if __name__ == "__main__":
    sys.exit(main())
