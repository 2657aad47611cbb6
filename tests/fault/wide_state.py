"""A program with arrays of several parts each on object storage: flat over all ranks, in columns, and replicated."""

from __future__ import annotations

import time

import numpy as np

from behemoth.sdk import State, join

FLAT_ELEMENTS = (23 << 20) // 4 + 5
"""Some 5.75 MiB for each of four ranks, which is a part; the last piece is shorter."""
COLUMNS = (512, 8192)
REPLICATED = 5_000_000


def main() -> None:
    run = join()
    num, rank = run.mesh.dp, run.rank
    share = -(-FLAT_ELEMENTS // num)
    flat = np.arange(rank * share, min((rank + 1) * share, FLAT_ELEMENTS), dtype=np.float32)
    columns = np.full((COLUMNS[0], COLUMNS[1] // num), rank, np.float32)
    replicated = np.arange(REPLICATED, dtype=np.float32)
    state = State()
    state.array("optim/flat", flat, shape=(FLAT_ELEMENTS,), flat_over="dp")
    state.array("model/columns", columns, shape=COLUMNS, dims={1: "dp"})
    state.array("model/replicated", replicated, shape=(REPLICATED,))
    first = run.restore(state)
    for step in run.steps(first, 10):
        time.sleep(0.1)
        run.fence()
        for array in (flat, columns, replicated):
            array *= np.float32(0.75)
            array += np.float32(step)
        run.report(step, tokens=1)
        run.save(step, state)
