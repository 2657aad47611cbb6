"""A program with one array that is an upload of two parts on object storage, one of each rank, and a small one.

`expected_digest` is what a run of it must end with, computed without any of the engine.
"""

from __future__ import annotations

import hashlib
import json
import time

import numpy as np

from behemoth.sdk import State, join

ELEMENTS = (12 << 20) // 4 + 3
SMALL = 16


def advance(array: np.ndarray, step: int) -> None:
    array *= np.float32(0.75)
    array += np.float32(step)


def main() -> None:
    run = join()
    share = -(-ELEMENTS // run.mesh.dp)
    flat = np.arange(run.rank * share, min((run.rank + 1) * share, ELEMENTS), dtype=np.float32)
    small = np.zeros(SMALL, np.float32)
    state = State()
    state.array("optim/flat", flat, shape=(ELEMENTS,), flat_over="dp")
    state.array("model/small", small, shape=(SMALL,))
    first = run.restore(state)
    for step in run.steps(first, 10):
        time.sleep(0.1)
        run.fence()
        advance(flat, step)
        advance(small, step)
        run.report(step, tokens=1)
        run.save(step, state)


def expected_digest(steps: int) -> str:
    """As docs/checkpoints.md defines it, after so many steps."""
    arrays = {"model/small": np.zeros(SMALL, np.float32), "optim/flat": np.arange(ELEMENTS, dtype=np.float32)}
    found = hashlib.sha256()
    for name, array in arrays.items():
        for step in range(1, steps + 1):
            advance(array, step)
        found.update(json.dumps([name, "float32", list(array.shape)], separators=(",", ":")).encode() + b"\n")
        found.update(array.tobytes())
    return f"sha256:{found.hexdigest()}"
