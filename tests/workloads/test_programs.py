"""The reference programs from end to end, in processes of their own, on the private stand-in for the SDK."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FAKE = Path(__file__).with_name("fake_sdk.py")
TORCH, NUMPY = "behemoth.workloads.tiny_moe", "behemoth.workloads.counter"
ALONE = {"dp": 1, "ep": 1, "edp": 1}
FOUR = {"dp": 4, "ep": 2, "edp": 2}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
TOY: dict[str, Any] = {"layers": 2, "nope_every": 2, "sequence": 32, "batch": 8, "width": 32, "expert_width": 24}


def gang(mesh: dict[str, int], folder: Path, *, steps: int, args: dict[str, Any]) -> list[dict[str, Any]]:
    """Specs of the ranks of one start of a program on `mesh`, which saves to `folder` at the last step."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(mesh["dp"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        {
            "rank": rank,
            "world_size": mesh["dp"],
            "mesh": mesh,
            "steps": steps,
            "save_at": [steps],
            "folder": str(folder),
            "args": args,
            "environment": {**world, "RANK": str(rank)},
        }
        for rank in range(mesh["dp"])
    ]


def play(module: str, *gangs: list[dict[str, Any]]) -> list[list[list[float]]]:
    """Run `module` for one gang after another, each rank in a process of its own; the losses by gang and rank."""
    done = subprocess.run(
        [sys.executable, str(FAKE), module, json.dumps(gangs)],
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses: list[list[list[float]]] = json.loads(done.stdout)
    return losses


def saved(folder: Path) -> dict[str, bytes]:
    """Every array of every rank, and every record, as bytes."""
    content: dict[str, bytes] = {}
    for path in sorted(folder.glob("rank*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            content |= {f"{path.stem}/{name}": arrays[name].tobytes() for name in arrays.files}
    return content


@pytest.mark.parametrize(
    ("module", "mesh", "args"),
    [(TORCH, ALONE, TOY), (TORCH, FOUR, TOY), (NUMPY, ALONE, {"step_ms": 0}), (NUMPY, FOUR, {"step_ms": 0})],
    ids=["torch-alone", "torch-four-ranks", "numpy-alone", "numpy-four-ranks"],
)
def test_a_restart_in_the_middle_changes_no_bit_of_any_array(
    module: str, mesh: dict[str, int], args: dict[str, Any], tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole, half, rest = play(
        module,
        gang(mesh, straight, steps=10, args=args),
        gang(mesh, broken, steps=5, args=args),
        gang(mesh, broken, steps=10, args=args),
    )
    assert saved(broken) == saved(straight)
    assert [[*first, *second] for first, second in zip(half, rest, strict=True)] == whole
    assert all(losses[-1] < losses[0] for losses in whole)


def test_four_ranks_report_one_loss_and_start_from_the_weights_of_one_rank(tmp_path: Path) -> None:
    args = {**TOY, "router_noise": 0.0}
    [alone], four = play(
        TORCH,
        gang(ALONE, tmp_path / "alone", steps=2, args=args),
        gang(FOUR, tmp_path / "four", steps=2, args=args),
    )
    assert all(rank == four[0] for rank in four)
    assert four[0] == pytest.approx(alone, rel=1e-5)


def test_importing_the_torch_program_starts_no_thread_and_leaves_nothing_for_the_first_step_to_import(
    tmp_path: Path,
) -> None:
    spec = {"rank": 0, "world_size": 1, "mesh": ALONE, "steps": 2, "save_at": [], "folder": str(tmp_path), "args": TOY}
    script = f"""
import os, sys
sys.path.insert(0, {str(FAKE.parent)!r})
import behemoth.sdk, fake_sdk
fake_sdk.replace_sdk(fake_sdk.FakeRun({spec!r}))
import {TORCH}
threads, before = len(os.listdir("/proc/self/task")), set(sys.modules)
{TORCH}.main()
print(threads, sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1 []"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("module", [f"{TORCH}.program", NUMPY])
def test_a_program_runs_by_hand_and_under_torchrun_with_the_real_sdk(module: str, world_size: int) -> None:
    script = f"import {module} as program; program.STEPS_ALONE = 2; program.main()"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    everybody = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | everybody | {"RANK": str(rank), "LOCAL_RANK": str(rank), **ONE_THREAD},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=10)
    assert [process.returncode for process in processes] == [0] * world_size, errors
