"""Save and restore of 4 GiB on a local directory, beside torch DCP, safetensors and zarr-python.

    .venv/bin/python tests/bench/checkpoint_local.py [--quick] [-o json] [--dir DIR] [--rounds N]

One process, one rank. Everybody saves the same float32 arrays, from and to the same warm buffers, and a save lasts from
the call until bytes and names are durable (fsync of every file, then of every directory). Ours is stage, write and
commit, written while it is staged, as worker and store process do it; its peers are synchronous. Restore reads into the
same buffers: cold (everybody's pages dropped), cached (everybody's files read through once before), and just saved.
There peers find their files in the page cache; ours restores from the node's memory, where the save has left its copy,
and once more as if that memory were lost, which reads the disk since ours writes past the page cache. Ours checks every
CRC on the way, DCP and safetensors have none. `stage` is the part of our save that blocks training, beside a plain copy
of the same bytes into the same warm memory. `cpu` is user + system seconds of this process, which other load on the
machine blurs less than wall time.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from bench_table import Round, Row, alone, alternate, arguments, beside, show
from checkpoint_peers import Arrays, Peer, peers

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.commit import commit, latest
from behemoth.checkpoint.following import Follower
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import open_commit, read_rank
from behemoth.checkpoint.staging import Stager, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore

LAYER_SHAPES = {
    **dict.fromkeys(("q", "k", "v", "o"), (2048, 2048)),
    **dict.fromkeys(("gate", "up", "down"), (2048, 8192)),
}
"""One layer of 256 MiB in float32: the shapes of a dense decoder of width 2048."""
NUM_LAYERS = 16
Shapes = Mapping[str, tuple[int, ...]]
DAMAGE = np.uint32(0xDEADBEEF)
JUST_SAVED, MEMORY_LOST = "just saved", "just saved, memory lost"


class Ours:
    """One rank, one generation of its arena. `save` and `restore` return seconds by phase.

    Made before the arrays are: for a moment its arena takes the memory of two generations.
    """

    def __init__(self, shapes: Shapes, *, num_threads: int) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._threads = num_threads
        self._layout = Layout(
            mesh=Mesh(),
            arrays=tuple(ArraySpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()),
        )
        self._plan = plan_rank(self._layout, Rank(0))
        self._fd = os.memfd_create("bench-arena")
        self._arena = Arena.format(self._fd, self._plan)
        _release_second_generation(self._fd, self._plan.data_bytes)
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._step = 0

    def bind(self, arrays: Arrays) -> None:
        """What to save from and restore into."""
        self._arrays = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}

    def copy(self) -> float:
        """Seconds of a plain copy of every array into the arena's memory, where `stage` would put it."""
        data = np.frombuffer(self._arena.filling(0), np.uint8)
        begin = time.perf_counter()
        for piece in self._plan.pieces:
            np.copyto(data[piece.arena_offset : piece.arena_offset + piece.nbytes], self._arrays[piece.name])
        return time.perf_counter() - begin

    def save(self, folder: Path) -> Mapping[str, float]:
        self._step += 1
        step, write_id, attempt = Step(self._step), WriteId(f"a1-{self._step}"), Attempt(1)
        store = LocalStore(folder)
        begin = time.perf_counter()
        stager = Stager(self._arena, self._plan, self._arrays, write_id=write_id, step=step)
        stager.begin(generation=0)
        writing = self._background.submit(
            write_rank,
            store,
            step_prefix(step, write_id),
            self._layout,
            self._plan,
            self._arena,
            0,
            attempt=attempt,
            threads=self._threads,
            cancelled=lambda: False,
            following=stager.sequence,
        )
        stager.seal()
        staged = time.perf_counter()
        receipt = writing.result()
        written = time.perf_counter()
        commit(
            store,
            run="bench",
            layout=self._layout,
            step=step,
            write_id=write_id,
            attempt=attempt,
            receipts=[receipt],
            previous=None,
        )
        end = time.perf_counter()
        store.close()
        return {"save": end - begin, "stage": staged - begin, "write": written - staged, "commit": end - written}

    def restore(self, folder: Path) -> Mapping[str, float]:
        store = LocalStore(folder)
        begin = time.perf_counter()
        newest = latest(store)
        assert newest is not None
        begun: SimpleQueue[int] = SimpleQueue()
        reading = self._background.submit(
            read_rank,
            store,
            open_commit(store, newest),
            self._layout,
            self._plan,
            self._arena,
            0,
            threads=self._threads,
            begun=begun.put,
        )
        follower = Follower(self._arena, 0, begun.get(), cancelled=lambda: reading.done() and bool(reading.exception()))
        unstage(self._arena, self._plan, 0, self._arrays, follower=follower)
        reading.result()
        end = time.perf_counter()
        store.close()
        return {"restore": end - begin}

    def remembered(self) -> Mapping[str, float]:
        """A restore from this node's memory, as after the death of a worker: CRCs checked, then copied out."""
        begin = time.perf_counter()
        self._arena.verify(0)
        unstage(self._arena, self._plan, 0, self._arrays)
        return {"restore": time.perf_counter() - begin}

    def close(self) -> None:
        self._background.shutdown()
        self._arena.close()
        os.close(self._fd)


def main() -> int:
    options = arguments(__doc__ or "", extend=_own_options)
    num_layers = 1 if options.quick else NUM_LAYERS
    num_rounds = options.rounds or (3 if options.quick else 7)
    num_threads = len(os.sched_getaffinity(0))
    shapes = _shapes(num_layers)
    ours = Ours(shapes, num_threads=num_threads)
    arrays = _arrays(shapes)
    ours.bind(arrays)
    with tempfile.TemporaryDirectory(prefix="behemoth-bench-", dir=options.dir) as root:
        contenders = {"behemoth": lambda: _our_round(ours, arrays, Path(root))} | {
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


def _our_round(ours: Ours, arrays: Arrays, root: Path) -> Mapping[str, float]:
    folder = root / "behemoth"
    ours.copy()  # the peers before have pushed this memory out of caches and page tables
    saved = _with_cpu("save", lambda: ours.save(folder))
    copied = ours.copy()
    remembered = _with_cpu("restore", lambda: _damaged_and_restored(arrays, ours.remembered))
    restored = _restored(arrays, folder, lambda: ours.restore(folder))
    shutil.rmtree(folder)
    lost = {metric: f"{metric}, {JUST_SAVED}" for metric in remembered}
    renamed = {f"{name}, {MEMORY_LOST}": restored[f"{name}, {JUST_SAVED}"] for name in lost}
    return {**saved, "copy": copied, **restored, **renamed, **{lost[name]: value for name, value in remembered.items()}}


def _peer_round(peer: Peer, arrays: Arrays, root: Path) -> Callable[[], Mapping[str, float]]:
    def run() -> Mapping[str, float]:
        folder = root / peer.name
        saved = _with_cpu("save", lambda: _timed("save", lambda: peer.save(arrays, folder)))
        restored = _restored(arrays, folder, lambda: _timed("restore", lambda: peer.restore(arrays, folder)))
        shutil.rmtree(folder)
        just_saved = {name: restored[f"{name}, {JUST_SAVED}"] for name in ("restore", "restore cpu")}
        return {**saved, **restored, **{f"{name}, {MEMORY_LOST}": value for name, value in just_saved.items()}}

    return run


def _timed(metric: str, work: Callable[[], None]) -> Mapping[str, float]:
    begin = time.perf_counter()
    work()
    return {metric: time.perf_counter() - begin}


def _with_cpu(metric: str, work: Round) -> Mapping[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {**seconds, f"{metric} cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def _restored(arrays: Arrays, folder: Path, restore: Round) -> Mapping[str, float]:
    """Seconds of a restore from each state of the page cache."""
    samples: dict[str, float] = {}
    for state, prepare in ((JUST_SAVED, None), ("cold", _drop), ("cached", _read_through)):
        if prepare is not None:
            _each_file(folder, prepare)
        seconds = _with_cpu("restore", lambda: _damaged_and_restored(arrays, restore))
        samples |= {f"{metric}, {state}": value for metric, value in seconds.items()}
    return samples


def _each_file(folder: Path, work: Callable[[int], None]) -> None:
    for path in (one for one in folder.rglob("*") if one.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            work(fd)
        finally:
            os.close(fd)


def _drop(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_through(fd: int) -> None:
    block = bytearray(8 << 20)
    while os.readv(fd, [block]):
        pass


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
    states = (JUST_SAVED, "cold", "cached", MEMORY_LOST)
    metrics = ("save", "save cpu", *(f"{what}, {state}" for state in states for what in ("restore", "restore cpu")))
    rows = [beside(metric, "s", ours[metric], name, samples[name][metric]) for metric in metrics for name in names]
    rows.append(beside("stage (blocks training)", "s", ours["stage"], "memcpy", ours["copy"]))
    return rows + [alone(f"  of which {phase}", "s", ours[phase]) for phase in ("write", "commit")]


def _release_second_generation(fd: int, data_bytes: int) -> None:
    """Give back the memory of the generation that is never used here, so that 4 GiB need 8 GiB and not 12."""
    size_bytes = os.fstat(fd).st_size
    start = -(-(size_bytes - data_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    with mmap.mmap(fd, size_bytes) as memory:
        memory.madvise(mmap.MADV_REMOVE, start, size_bytes - start)


if __name__ == "__main__":
    sys.exit(main())
