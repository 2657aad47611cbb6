"""Restore on another mesh, beside torch DCP's resharding load; and over-read, by us and of the reference Behemoth.

    .venv/bin/python tests/bench/reshard.py [--quick] [-o json] [--dir DIR] [--rounds N]

Each case saves the same arrays once per contender on one mesh, ours by the checkpoint engine, DCP's by as many gloo
processes as that mesh has ranks. Then one process per rank of the other mesh restores, again and again: DCP by
`dcp.load` into DTensors of its mesh, ours as on a node that has all these ranks: its store process opens the commit and
reads into their staging memory, on one thread per rank, several where files are cold, and behind the last one's end the
ranks `unstage` out of it. `raw` is the machine's own rate: each rank reads its bytes in a row, through the page cache,
out of a file that has nothing else. All fill the very same buffers, which are damaged before and
compared afterwards. A sample is wall time from the order to the last rank's answer. Ours checks the CRC of every byte
on the way, the others have none. Files are in the page cache (`cached`, brought there in one way for everybody) or not
(`cold`). `bytes read` are the kernel's account of what all processes got from read(2), against what they hold. A new
mesh needs new staging memory; `format` is that, all ranks' at once and before the restore.
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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bench_table import Row, alone, alternate, arguments, beside, show
from page_states import cache, drop, each_file
from programs import reshard_scene as scene

sys.path.append(str(Path(__file__).parents[1]))  # the giant layout is the tests' own

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin, origins
from behemoth.checkpoint.over_read import over_read
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reshard import plan_resharding
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import written_rank
from checkpoint.giant_layout import (
    MESH,
    MOMENTS_LEFT,
    READER_MESHES,
    TRAINING_CHANGES,
    TRAINING_MESHES,
    giant,
    giant_bfloat16,
    giant_experts,
    giant_float8,
    giant_weights,
    to_float8,
    to_float8_by_matrix,
)

NUM_LAYERS = 4
STEP, WRITE_ID, ATTEMPT = Step(1), WriteId("a1-1"), Attempt(1)
LIMIT_S = 900.0
"""Of an order to all programs: it ends a hang and judges no speed."""
PROGRAMS = Path(__file__).parent / "programs"
STATES = {"cached": cache, "cold": drop}
PEERS = ("torch-dcp", "raw")
CONTENDERS = ("behemoth", *PEERS)


class Gang:
    """The processes of one case's new mesh, one per rank and our node's store process, until `close`."""

    def __init__(self, case: scene.Case, num_layers: int, folder: Path) -> None:
        self._node = _program("reshard_node.py", case.axis, case.ranks, num_layers, folder)
        (node,) = _answers([self._node])
        self.format_s: float = node["format"]
        self._ranks = _start("load", case.axis, case.ranks, num_layers, folder, arenas=node["arenas"])
        self.held_bytes = sum(one["held"] for one in _answers(self._ranks))

    def order(self, what: str) -> list[dict[str, Any]]:
        """Tell all ranks at once, and wait for the last one."""
        return _order(self._ranks, what)

    def load(self, contender: str) -> list[dict[str, Any]]:
        """All ranks' answers, and that of our store process, which is first."""
        read = _order([self._node], "restore") if contender == "behemoth" else []
        return read + self.order(contender)

    def close(self) -> None:
        for one in (*self._ranks, self._node):
            assert one.stdin is not None
            one.stdin.close()
        _wait([*self._ranks, self._node])

    def kill(self) -> None:
        """Whoever is left: an order that ran past its limit ends the benchmark and not the ranks."""
        for one in (*self._ranks, self._node):
            one.kill()


def main() -> int:
    options = arguments(__doc__ or "", extend=_own_options)
    num_layers = 1 if options.quick else NUM_LAYERS
    num_rounds = options.rounds or (3 if options.quick else 15)
    rows: list[Row] = []
    for case in scene.CASES:
        print(case.name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="behemoth-bench-", dir=options.dir) as folder:
            rows += _measured(case, num_layers, Path(folder), num_rounds)
    rows += _giant_rows(quick=options.quick)
    num_bytes = sum(4 * rows_ * columns for rows_, columns in scene.shapes(num_layers).values())
    notes = [
        f"{num_bytes / 2**30:.2f} GiB in {len(scene.shapes(num_layers))} arrays, one process per rank, one thread "
        "each, several for cold files",
        "a ratio below 1 means that ours is faster, or reads less",
    ]
    show("reshard", rows, options, notes=notes)
    return 0


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=None, help="counted rounds of each case (default: 15, quick 3)")


def _measured(case: scene.Case, num_layers: int, folder: Path, num_rounds: int) -> list[Row]:
    _save_ours(case, num_layers, folder / "behemoth")
    _wait(_start("save", case.axis, case.saved_ranks, num_layers, folder))
    with ExitStack() as stack:
        gang = Gang(case, num_layers, folder)
        stack.callback(gang.kill)
        stack.callback(gang.close)

        def round_of(contender: str) -> Mapping[str, float]:
            values: dict[str, float] = {}
            for state, prepare in STATES.items():
                each_file(folder / contender, prepare)
                values |= {f"{metric}, {state}": value for metric, value in _load(gang, contender).items()}
            return values

        contenders = {name: lambda name=name: round_of(name) for name in CONTENDERS}
        samples = alternate(contenders, num_rounds=num_rounds)
    return _rows(case, samples, [gang.format_s])


def _load(gang: Gang, contender: str) -> Mapping[str, float]:
    gang.order("damage")
    begin = time.perf_counter()
    answers = gang.load(contender)
    seconds = time.perf_counter() - begin
    if not all(one["is_right"] for one in gang.order("check")):
        raise SystemExit(f"{contender} did not bring back what was saved: the numbers would mean nothing")
    parts = {phase: max(one.get(phase, 0.0) for one in answers) for phase in ("read", "unstage")}
    return {"restore": seconds, "bytes": sum(one["bytes"] for one in answers) / gang.held_bytes, **parts}


def _rows(case: scene.Case, samples: Mapping[str, Mapping[str, list[float]]], formats: Sequence[float]) -> list[Row]:
    ours, dcp = samples["behemoth"], samples["torch-dcp"]
    rows = []
    for state in STATES:
        metric = f"restore, {state}"
        rows += [beside(f"{case.name}, {state}", "s", ours[metric], name, samples[name][metric]) for name in PEERS]
        rows += [alone(f"  of which {phase}", "s", ours[f"{phase}, {state}"]) for phase in ("read", "unstage")]
    rows.append(beside("  bytes read / held", "", ours["bytes, cached"], "torch-dcp", dcp["bytes, cached"]))
    rows.append(alone("  format, all ranks", "s", formats))
    return rows


def _giant_rows(*, quick: bool) -> list[Row]:
    """Calculated, not measured, but for the seconds of the plan of one rank."""
    saved = giant()
    rows: list[Row] = []
    for name, runs in TRAINING_CHANGES.items():
        was, layout = (giant(*run) for run in runs)
        found = origins(was, layout, step=STEP)
        rows += _over_read_rows(name, was, layout, found, quick=quick)
        rows.append(alone("  plan of one rank's reads", "s", _plan_s(was, layout, found)))
    for name, mesh in READER_MESHES.items():
        layout = giant_weights(mesh)
        found = origins(saved, layout, step=STEP, intake=MOMENTS_LEFT)
        rows += _over_read_rows(name, saved, layout, found, quick=quick)
    for name, mesh in READER_MESHES.items():
        layout, intake = giant_experts(mesh)
        found = origins(saved, layout, step=STEP, intake=intake)
        rows += _over_read_rows(f"{name}, experts 3 to 5 alone", saved, layout, found, quick=quick)
    weights = giant_bfloat16()
    for name, mesh in (TRAINING_MESHES | READER_MESHES).items():
        layout = giant_float8(mesh)
        found = origins(weights, layout, step=STEP, intake=to_float8())
        rows += _over_read_rows(f"bfloat16 to float8, {name}", weights, layout, found, quick=quick)
    for name, mesh in ({"same mesh": MESH} | TRAINING_MESHES | READER_MESHES).items():
        layout, intake = to_float8_by_matrix(mesh)
        once = over_read(weights, layout, origins(weights, layout, step=STEP, intake=intake), ranks=[0]).once
        rows.append(alone(f"bfloat16 to float8 by matrix, {name}: over-read, each chunk once", "", [once]))
    return rows


def _over_read_rows(name: str, saved: Layout, layout: Layout, found: Sequence[Origin], *, quick: bool) -> list[Row]:
    ranks = range(0, layout.mesh.num_ranks, 997) if quick else None
    figures = over_read(saved, layout, found, ranks=ranks)
    return [
        alone(f"Behemoth-ref, {name}: over-read, each chunk once", "", [figures.once]),
        alone("  over-read, each rank for itself", "", [figures.alone]),
    ]


def _plan_s(saved: Layout, layout: Layout, found: Sequence[Origin]) -> list[float]:
    """Seconds of several ranks; what a layout is asked once has been asked before."""
    seconds = []
    for rank in np.linspace(0, layout.mesh.num_ranks - 1, 9).astype(int).tolist():
        plan = plan_rank(layout, Rank(rank))
        begin = time.perf_counter()
        plan_resharding(saved, layout, plan, found)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _save_ours(case: scene.Case, num_layers: int, root: Path) -> None:
    """Every rank of the old mesh in turn."""
    store, layout = LocalStore(root), scene.layout(case.axis, case.saved_ranks, num_layers)
    receipts = [
        written_rank(
            store,
            layout,
            rank,
            lambda plan: scene.held(case.axis, case.saved_ranks, plan.rank, num_layers),
            step=STEP,
            write_id=WRITE_ID,
        )
        for rank in range(case.saved_ranks)
    ]
    candidate = Candidate(run="bench", step=STEP, write_id=WRITE_ID, attempt=ATTEMPT)
    commit(store, candidate, layout, receipts, previous=None)
    store.close()


def _start(
    mode: str, axis: str, world: int, num_layers: int, folder: Path, *, arenas: Sequence[str] | None = None
) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [[arena] for arena in arenas] if arenas is not None else world * [list[str]()]
    return [
        _program("reshard_rank.py", mode, axis, rank, world, port, num_layers, folder, *more[rank])
        for rank in range(world)
    ]


def _program(name: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(PROGRAMS.parent), str(PROGRAMS.parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / name), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _order(programs: Sequence[subprocess.Popen[str]], what: str) -> list[dict[str, Any]]:
    for one in programs:
        assert one.stdin is not None
        one.stdin.write(what + "\n")
        one.stdin.flush()
    return _answers(programs)


def _answers(programs: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    answers = []
    for one in programs:
        assert one.stdout is not None
        line = one.stdout.readline()
        if not line:
            raise SystemExit(f"a program ended with {one.wait(LIMIT_S)} instead of an answer")
        answers.append(json.loads(line))
    return answers


def _wait(ranks: Sequence[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        if rank.wait(LIMIT_S):
            raise SystemExit(f"a rank ended with exit code {rank.returncode}")


if __name__ == "__main__":
    sys.exit(main())
