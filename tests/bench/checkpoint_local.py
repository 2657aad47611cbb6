"""Save and restore of 4 GiB on a local directory, beside torch DCP, safetensors (plain and checked) and zarr-python.

    .venv/bin/python tests/bench/checkpoint_local.py [--quick] [-o json] [--dir DIR] [--rounds N]

One process, one rank. Everybody saves the same float32 arrays, from and to the same warm buffers, and a save lasts from
the call until bytes and names are durable (fsync of every file, then of every directory). Ours is stage, write and
commit, with a real store process that writes while it is staged; its peers are synchronous. Restore reads into the
same buffers, in the three states that a run meets: just saved, cold (everybody's pages dropped), and again, right
after the cold one. Just saved and again, peers find their files in the page cache, ours finds the node's memory, where
save and cold restore have left a copy. Two more states are those of a node whose agent died with that memory while the
page cache lived on: just saved, where ours reads the disk since it writes past the page cache, and cached, after the
files were dropped and read through twice in one way for everybody. `read` is what the store process does for a
restore, `unstage` what the rank does: a copy out of staging memory, or, when the files are cached, reading them
itself. Ours checks every CRC on the way, DCP and safetensors have none;
`safetensors+crc` has them added. `stage` is the part of our save that blocks training, beside a plain copy of the
same bytes into the same warm memory. `cpu` is user + system seconds of all processes, which other load on the machine
blurs less than wall time.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from bench_table import Round, Row, alone, alternate, arguments, beside, show
from checkpoint_peers import Arrays, Peer, peers
from page_states import cache, drop, each_file

from behemoth.agent.child import Child
from behemoth.agent.storewire import STORE_REPORTS, OpenStore, Prepare, Prepared, Source, Write, Written
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import Stager, unstage
from behemoth.sdk.files import read_files
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.wire.frames import encode_frame
from behemoth.wire.session import Peer as Session
from behemoth.wire.session import send_with

A = TypeVar("A", Prepared, Written)
LIMIT_S = 600.0

LAYER_SHAPES = {
    **dict.fromkeys(("q", "k", "v", "o"), (2048, 2048)),
    **dict.fromkeys(("gate", "up", "down"), (2048, 8192)),
}
"""One layer of 256 MiB in float32: the shapes of a dense decoder of width 2048."""
NUM_LAYERS = 16
Shapes = Mapping[str, tuple[int, ...]]
DAMAGE = np.uint32(0xDEADBEEF)
JUST_SAVED, COLD, AGAIN = "just saved", "cold", "again"
SAVED_LOST, CACHED_LOST = "agent lost, just saved", "agent lost, cached"
STATES = (JUST_SAVED, COLD, AGAIN, SAVED_LOST, CACHED_LOST)
RESTORE_METRICS = ("restore", "restore cpu")


class Ours:
    """One rank, one generation of its arena, and a store process as every node has it. Results are seconds by phase.

    Made before the arrays are: for a moment its arena takes the memory of two generations.
    """

    def __init__(self, shapes: Shapes, folder: Path, *, num_threads: int) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._folder = folder
        self._threads = num_threads
        self._layout = Layout(
            mesh=Mesh(),
            arrays=tuple(ArraySpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()),
        )
        self._plan = plan_rank(self._layout, Rank(0))
        self._fd = os.memfd_create("bench-arena", os.MFD_ALLOW_SEALING)
        self._child = Child.start("behemoth.wiring.store", environment=os.environ, own_session=False)
        self._peer = Session(self._child.sock, STORE_REPORTS)
        self._peer.send(OpenStore(job=0, url=str(folder), threads=num_threads, num_ranks=1), timeout_s=LIMIT_S)
        self._step = 0
        self._prepare(None, is_new=True)
        self._arena = Arena.open(self._fd)

    def bind(self, arrays: Arrays) -> None:
        """What to save from and restore into."""
        self._arrays = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}

    def copy(self) -> float:
        """Seconds of a plain copy of every array into the arena's memory, where the save would put it."""
        data = np.frombuffer(self._arena.filling(0), np.uint8)
        begin = time.perf_counter()
        for piece in self._plan.pieces:
            np.copyto(data[piece.arena_offset : piece.arena_offset + piece.nbytes], self._arrays[piece.name])
        return time.perf_counter() - begin

    def save(self) -> Mapping[str, float]:
        """What worker, store process and coordinator do, one after another as far as they do not overlap."""
        self._step += 1
        step, write_id, attempt = Step(self._step), WriteId(f"a1-{self._step}"), Attempt(1)
        begin = time.perf_counter()
        stager = Stager(self._arena, self._plan, self._arrays, write_id=write_id, step=step, threads=self._threads)
        stager.begin(generation=0)
        self._order(
            Write(
                job=self._step,
                rank=Rank(0),
                layout=self._layout.encode(),
                generation=0,
                attempt=attempt,
                step=step,
                write_id=write_id,
                following=stager.sequence,
            )
        )
        stager.seal()
        staged = time.perf_counter()
        written = self._answer(Written)
        received = time.perf_counter()
        store = LocalStore(self._folder)
        commit(
            store,
            run="bench",
            layout=self._layout,
            step=step,
            write_id=write_id,
            attempt=attempt,
            receipts=[Receipt.decode(written.receipt)],
            previous=None,
        )
        end = time.perf_counter()
        store.close()
        return {"save": end - begin, "stage": staged - begin, "write": received - staged, "commit": end - received}

    def restore(self, *, is_remembered: bool) -> Mapping[str, float]:
        """From the node's memory, as after the death of a worker, or from the store. CRCs are checked."""
        source = Source(
            step=Step(self._step),
            write_id=WriteId(f"a1-{self._step}"),
            held_in=0 if is_remembered else None,
            spare=0,
        )
        begin = time.perf_counter()
        prepared = self._prepare(source, is_new=False)
        read = time.perf_counter()
        assert (prepared.origin == "memory") is is_remembered
        if prepared.folder:
            read_files(prepared.folder, self._layout, self._plan, self._arrays, threads=self._threads)
        else:
            unstage(self._arena, self._plan, 0, self._arrays, threads=self._threads, is_checked=not is_remembered)
        end = time.perf_counter()
        return {"restore": end - begin, "read": read - begin, "unstage": end - read}

    def cpu_s(self) -> float:
        """User and system seconds of the store process so far."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._peer.close()
        self._child.kill()
        self._arena.close()
        os.close(self._fd)

    def _prepare(self, source: Source | None, *, is_new: bool) -> Prepared:
        self._order(Prepare(job=0, rank=Rank(0), layout=self._layout.encode(), is_new=is_new, source=source))
        return self._answer(Prepared)

    def _order(self, order: Prepare | Write) -> None:
        send_with(self._child.sock, encode_frame(order), (self._fd,))

    def _answer(self, kind: type[A]) -> A:
        answer = self._peer.receive(timeout_s=LIMIT_S, what="the store process")
        if not isinstance(answer, kind):
            raise SystemExit(f"store process: expected {kind.__name__}, got {answer}")
        return answer


def main() -> int:
    options = arguments(__doc__ or "", extend=_own_options)
    num_layers = 1 if options.quick else NUM_LAYERS
    num_rounds = options.rounds or (3 if options.quick else 7)
    num_threads = len(os.sched_getaffinity(0))
    shapes = _shapes(num_layers)
    with tempfile.TemporaryDirectory(prefix="behemoth-bench-", dir=options.dir) as root:
        ours = Ours(shapes, Path(root) / "behemoth", num_threads=num_threads)
        arrays = _arrays(shapes)
        ours.bind(arrays)
        contenders = {"behemoth": lambda: _our_round(ours, arrays, Path(root) / "behemoth")} | {
            peer.name: _peer_round(peer, arrays, Path(root)) for peer in peers(num_threads=num_threads)
        }
        samples = alternate(contenders, num_rounds=num_rounds)
        ours.close()
    num_bytes = sum(array.nbytes for array in arrays.values())
    notes = [
        f"{num_bytes / 2**30:.2f} GiB in {len(arrays)} arrays, {num_threads} threads, files below {Path(root).parent}",
        "seconds; a ratio below 1 means that ours is faster; everybody syncs files and folders",
    ]
    show("checkpoint_local", _rows(samples), options, notes=notes)
    return 0


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=None, help="counted rounds (default: 7, quick 3)")


def _shapes(num_layers: int) -> Shapes:
    layer_shapes = {**LAYER_SHAPES, "norm": (2048,)}
    return {f"layers.{layer}.{name}": shape for layer in range(num_layers) for name, shape in layer_shapes.items()}


def _arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def _our_round(ours: Ours, arrays: Arrays, folder: Path) -> Mapping[str, float]:
    ours.copy()  # the peers before have pushed this memory out of caches and page tables
    saved = _with_cpu("save", ours.save, ours.cpu_s)
    copied = ours.copy()

    def restored(state: str, *, is_remembered: bool) -> Mapping[str, float]:
        return _restored(arrays, state, lambda: ours.restore(is_remembered=is_remembered), ours.cpu_s)

    samples = {**saved, "copy": copied}
    samples |= restored(JUST_SAVED, is_remembered=True)
    samples |= restored(SAVED_LOST, is_remembered=False)
    each_file(folder, drop)
    samples |= restored(COLD, is_remembered=False)
    samples |= restored(AGAIN, is_remembered=True)
    each_file(folder, cache)
    samples |= restored(CACHED_LOST, is_remembered=False)
    shutil.rmtree(folder)
    return samples


def _peer_round(peer: Peer, arrays: Arrays, root: Path) -> Callable[[], Mapping[str, float]]:
    def run() -> Mapping[str, float]:
        folder = root / peer.name
        samples = dict(_with_cpu("save", lambda: _timed("save", lambda: peer.save(arrays, folder))))
        for state, prepare in ((JUST_SAVED, None), (COLD, drop), (AGAIN, None), (CACHED_LOST, cache)):
            if prepare is not None:
                each_file(folder, prepare)
            samples |= _restored(arrays, state, lambda: _timed("restore", lambda: peer.restore(arrays, folder)))
        shutil.rmtree(folder)
        just_saved = {f"{metric}, {SAVED_LOST}": samples[f"{metric}, {JUST_SAVED}"] for metric in RESTORE_METRICS}
        return samples | just_saved

    return run


def _timed(metric: str, work: Callable[[], None]) -> Mapping[str, float]:
    begin = time.perf_counter()
    work()
    return {metric: time.perf_counter() - begin}


def _with_cpu(metric: str, work: Round, elsewhere_s: Callable[[], float] = lambda: 0.0) -> Mapping[str, float]:
    """`elsewhere_s`: CPU seconds so far of a process that works for this one."""
    before, before_s = resource.getrusage(resource.RUSAGE_SELF), elsewhere_s()
    seconds = work()
    after, after_s = resource.getrusage(resource.RUSAGE_SELF), elsewhere_s()
    own_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**seconds, f"{metric} cpu": own_s + after_s - before_s}


def _restored(
    arrays: Arrays, state: str, restore: Round, elsewhere_s: Callable[[], float] = lambda: 0.0
) -> dict[str, float]:
    seconds = _with_cpu("restore", lambda: _damaged_and_restored(arrays, restore), elsewhere_s)
    return {f"{metric}, {state}": value for metric, value in seconds.items()}


def _damaged_and_restored(arrays: Arrays, restore: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """Overwrite the first word of every page, restore, and see that each is back: nobody restores nothing."""
    words = [array.reshape(-1).view(np.uint32)[::1024] for array in arrays.values()]
    before = [word.copy() for word in words]
    for word in words:
        word[:] = DAMAGE
    seconds = restore()
    if not all(np.array_equal(word, kept) for word, kept in zip(words, before, strict=True)):
        raise SystemExit("restore did not bring back what was saved: the numbers would mean nothing")
    return seconds


def _rows(samples: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    ours = samples["behemoth"]
    names = [name for name in samples if name != "behemoth"]
    metrics = ("save", "save cpu", *(f"{metric}, {state}" for state in STATES for metric in RESTORE_METRICS))
    rows = [beside(metric, "s", ours[metric], name, samples[name][metric]) for metric in metrics for name in names]
    rows.append(beside("stage (blocks training)", "s", ours["stage"], "memcpy", ours["copy"]))
    phases = ("write", "commit", *(f"{what}, {state}" for state in STATES for what in ("read", "unstage")))
    return rows + [alone(f"  of which {phase}", "s", ours[phase]) for phase in phases]


if __name__ == "__main__":
    sys.exit(main())
