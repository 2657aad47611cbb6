"""Tiny training programs that the agent's tests run as workers: numpy but for one, mishaps on request by arguments."""

# ruff: noqa: T201  # workers print on purpose: the tests read their logs

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from behemoth.sdk import Cast, Run, State, join


def train() -> None:
    """Counts in arrays; `step_ms` paces it. Prints its state after restore, so that tests can compare."""
    run = join()
    weight = np.zeros(16, dtype=np.float32)
    piece = np.zeros(8 // run.mesh.dp, dtype=np.float64)
    cursor = {"at": 0}
    state = State()
    state.array("weight", weight, shape=(16,))
    state.array("moment", piece, shape=(8,), flat_over="dp")
    state.record(get=lambda: dict(cursor), set=lambda value: cursor.update(value))  # type: ignore[arg-type]
    state.rank_record(get=lambda: {"rank": run.rank}, set=lambda value: print("rank record", value, flush=True))
    first = run.restore(state)
    print(f"restored {first} {weight[0]} {piece.sum()} {cursor['at']}", flush=True)
    for step in run.steps(first):
        time.sleep(float(run.args.get("step_ms", 5)) / 1000)
        if step == run.args.get("hang_at"):
            hang_here_for_ever()
        run.fence()
        weight += 1
        piece += step
        cursor["at"] = step
        run.report(step, loss=1.0 / step, tokens=10)
        run.save(step, state)
    print("done", flush=True)


def train_split() -> None:
    """Holds columns of a matrix over tp, and a share of its moments flat over cp x dp. Both follow from the step alone,
    so that ranks of any mesh can tell whether what they got back is theirs."""
    run = join()
    matrix = np.arange(60.0).reshape(5, 12)
    columns = np.split(matrix, run.mesh.tp, axis=1)[run.mesh.coordinate("tp")]
    share = np.split(matrix.reshape(-1), run.mesh.size(("cp", "dp")))[run.mesh.coordinate(("cp", "dp"))]
    weight, moment = np.zeros_like(columns), np.zeros_like(share)
    state = State()
    state.array("weight", weight, shape=matrix.shape, dims={1: "tp"})
    state.array("moment", moment, shape=matrix.shape, flat_over=("cp", "dp"))
    state.rank_record(get=lambda: run.rank, set=lambda value: print("rank record", value, flush=True))
    first = run.restore(state)
    is_right = np.array_equal(weight, first * columns) and np.array_equal(moment, first * share)
    print(f"restored {first} {is_right}", flush=True)
    for step in run.steps(first):
        time.sleep(0.005)
        run.fence()
        weight += columns
        moment += share
        run.save(step, state)


def fine_tune() -> None:
    """Takes over what `train_split` saved: rows 1 to 3 of its matrix in bfloat16, no moments; and has arrays of its own
    that are no zeros to begin with."""
    run = join()
    rows = np.zeros((3, 12 // run.mesh.tp), dtype=ml_dtypes.bfloat16)
    moment, adapter = np.full(60 // run.mesh.dp, 7.0), np.full(4, 3, dtype=np.int32)
    state = State()
    state.array("rows", rows, shape=(3, 12), dims={1: "tp"})
    state.array("moment", moment, shape=(60,), flat_over="dp")
    state.array("adapter", adapter, shape=(4,))
    state.record(get=lambda: 1, set=lambda value: print("record", value, flush=True))
    first = run.restore(
        state, only=["rows", "adapter"], missing=["adapter"], convert={"rows": Cast(array="weight", begin=(1, 0))}
    )
    print(f"restored {first} rows {rows.astype(float).sum()} moment {moment[0]} adapter {adapter[0]}", flush=True)
    for step in run.steps(first):
        time.sleep(0.005)
        run.fence()
        rows += 1
        moment += 1
        adapter += 1
        run.save(step, state)


def train_big() -> None:
    """Holds more than is copied inside `save`, so that a thread copies until the fence."""
    run = join()
    big = np.zeros(10 << 20, dtype=np.float64)
    scale = np.zeros(4)
    state = State()
    state.array("big", big, shape=big.shape)
    state.array("scale", scale, shape=(4,), mutable_in_forward=True)
    first = run.restore(state)
    print(f"restored {first} {big.min()} {big.max()} {scale[0]}", flush=True)
    for step in run.steps(first):
        scale += 1  # changes in the forward pass, while the copy of the rest goes on
        time.sleep(600 if step == run.args.get("long_step") and run.attempt == 1 else 0.05)
        if step != run.args.get("unfenced_step"):
            run.fence()
        big += 1
        run.save(step, state)
        hold(run, step, state)


def train_big_on_device() -> None:
    """As `train_big`, on the stand-in for a GPU. When `save` comes, the optimizer's work still waits on its stream."""
    import torch

    from sdk.stand_in import OnDevice, stand_in

    with stand_in() as cuda:
        run = join()
        big = torch.zeros(10 << 20, dtype=torch.float64)
        scale = torch.zeros(4)
        state = State()
        state.array("big", OnDevice(big), shape=tuple(big.shape))
        state.array("scale", OnDevice(scale), shape=(4,), mutable_in_forward=True)
        first = run.restore(state)
        print(f"restored {first} {big.min().item()} {big.max().item()} {scale[0].item()}", flush=True)
        for step in run.steps(first):
            cuda.main.give(partial(scale.add_, 1))
            cuda.main.finish()
            time.sleep(0.05)
            run.fence()
            cuda.main.give(partial(big.add_, 1))
            run.save(step, state)


def hold(run: Run, step: int, state: State) -> None:
    """Stay at the end of step `hold_at` until the test lets the program go on, and hear the agent meanwhile: what is
    announced for the next steps is announced in time, however busy the machine is."""
    while step == run.args.get("hold_at") and not Path(os.environ["GO_ON"]).exists():
        time.sleep(0.01)
        run.save(step, state)


def train_shares() -> None:
    """Each rank holds `mib` MiB of its own: bytes that tell the step, so that no mixture goes unnoticed."""
    run = join()
    train_together(run, State(), [])


def train_replicas() -> None:
    """As `train_shares`, beside weights of `mib` MiB which every rank holds whole."""
    run, state = join(), State()
    weights = np.zeros(int(run.args["mib"]) << 17, dtype=np.float64)
    state.array("weights", weights, shape=weights.shape)
    train_together(run, state, [weights])


def train_together(run: Run, state: State, others: list[np.ndarray]) -> None:
    """Train a share of the rank's own, and other arrays of `state` in step with it."""
    share = np.zeros(int(run.args["mib"]) << 17, dtype=np.float64)
    state.array("share", share, shape=(share.size * run.mesh.dp,), flat_over="dp")
    arrays = [*others, share]
    first = run.restore(state)
    print(f"restored {first} {min(one.min() for one in arrays)} {max(one.max() for one in arrays)}", flush=True)
    for step in run.steps(first):
        time.sleep(0.01)
        run.fence()
        for array in arrays:
            array += 1
        run.save(step, state)


def hang_here_for_ever() -> None:
    while True:
        time.sleep(0.01)


def breed() -> None:
    """Trains with a child in its group and one that left the group and was orphaned."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(sleeper)
    script = (
        "import subprocess, sys;"
        "p = subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=2);"
        "print(p.pid, flush=True)"
    )
    orphan = subprocess.run([sys.executable, "-c", script, *sleeper], stdout=subprocess.PIPE, check=True, timeout=30)
    print(f"pids {os.getpid()} {child.pid} {int(orphan.stdout)}", flush=True)  # in one write
    train()


def leave_a_child() -> None:
    """Rank 1 ends at once with a child of its group running; its peers train on."""
    if os.environ["RANK"] != "1":
        train()
        return
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"pids {os.getpid()} {child.pid}", flush=True)  # in one write
    sys.exit(3)


def shout() -> None:
    """Prints far more than its log may hold, then trains."""
    run = join()
    line = "x" * 99 + "\n"
    for _ in range(int(run.args["megabytes"])):
        sys.stdout.write(line * 10_000)
    print("the newest line", flush=True)
    for step in run.steps(0):
        run.report(step)


def never_join() -> None:
    time.sleep(600)


def fail() -> None:
    join()
    raise RuntimeError("the program is broken on purpose")


def leave_early() -> None:
    join()
