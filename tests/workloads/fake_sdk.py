"""A private stand-in for `behemoth.sdk`: one process of a run, whose checkpoint is a file in a folder.

It lets the reference programs be tested without agents: `python fake_sdk.py MODULE SPEC` runs MODULE's main with the
rank, mesh, arguments and steps of SPEC (JSON), restores from and saves to its folder, and prints losses and timings.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeState:
    """Remembers what was declared; refuses what the real one refuses: other than contiguous CPU memory."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.declared: dict[str, dict[str, Any]] = {}
        self.records: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}

    def array(self, name: str, local: Any, **declared: Any) -> None:
        assert name not in self.arrays, name
        assert local.is_contiguous() if hasattr(local, "is_contiguous") else local.flags.c_contiguous, name
        self.arrays[name] = local
        self.declared[name] = declared

    def record(self, *, get: Callable[[], Any], set: Callable[[Any], None]) -> None:
        self.records["run"] = (get, set)

    def rank_record(self, *, get: Callable[[], Any], set: Callable[[Any], None]) -> None:
        self.records["rank"] = (get, set)


class FakeRun:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.rank: int = spec["rank"]
        self.world_size: int = spec["world_size"]
        self.local_rank = self.rank
        sizes = {"tp": 1, "cp": 1, "pp": 1, "etp": 1, **spec["mesh"]}
        self.mesh = SimpleNamespace(**sizes)
        self.args: dict[str, Any] = spec.get("args", {})
        self.total_steps: int = spec["steps"]
        self.save_at: list[int] = spec["save_at"]
        self.folder = Path(spec["folder"])
        self.losses: list[float] = []
        self.ends: list[float] = []
        self.may_update = False

    def restore(self, state: FakeState) -> int:
        path = self.folder / f"rank{self.rank}.npz"
        if not path.exists():
            return 0
        with np.load(path, allow_pickle=False) as saved:
            for name, local in state.arrays.items():
                raw_bytes(local)[:] = saved[name]
            header = json.loads(saved["header"].tobytes())
        for kind, (_, put) in state.records.items():
            put(header[kind] if kind == "run" else bytes.fromhex(header[kind]))
        return int(header["step"])

    def steps(self, first: int, total: int | None = None) -> Iterator[int]:
        assert total is not None, "outside a run nobody else says how many steps there are"
        for step in range(first + 1, self.total_steps + 1):
            yield step
            self.ends.append(time.perf_counter())

    def fence(self) -> None:
        self.may_update = True

    def report(self, step: int, *, loss: float, tokens: int) -> None:
        assert self.may_update, f"step {step} was updated without a fence"
        assert tokens > 0
        self.losses.append(loss)

    def save(self, step: int, state: FakeState) -> None:
        self.may_update = False
        if step not in self.save_at:
            return
        header: dict[str, Any] = {"step": step}
        for kind, (get, _) in state.records.items():
            header[kind] = get() if kind == "run" else get().hex()
        arrays = {name: raw_bytes(local) for name, local in state.arrays.items()}
        declared = {
            name: repr(sorted(d.items())) + str(a.dtype)
            for (name, d), a in zip(state.declared.items(), state.arrays.values(), strict=True)
        }
        (self.folder / f"rank{self.rank}.declared.json").write_text(json.dumps(declared))
        np.savez(
            self.folder / f"rank{self.rank}.npz", header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays
        )


def raw_bytes(local: Any) -> np.ndarray:
    """The array's own memory as uint8[bytes]; writing to it changes the array."""
    if isinstance(local, np.ndarray):
        return local.reshape(-1).view(np.uint8)
    torch = sys.modules["torch"]
    view: np.ndarray = local.view(-1).view(torch.uint8).numpy()
    return view


def replace_sdk(run: FakeRun) -> None:
    """Put the stand-in in the SDK's place, in a process that ends with the test; before a program is imported."""
    import behemoth.sdk as sdk

    for name, value in {"join": lambda: run, "State": FakeState, "Run": FakeRun}.items():
        setattr(sdk, name, value)


def play(module: str, spec: dict[str, Any]) -> FakeRun:
    """Run `module`'s main on this fake, in this process."""
    run = FakeRun(spec)
    replace_sdk(run)
    importlib.import_module(module).main()
    return run


if __name__ == "__main__":
    started = time.perf_counter()
    played = play(sys.argv[1], json.loads(sys.argv[2]))
    seconds = [end - begin for begin, end in zip([started, *played.ends], played.ends, strict=False)]
    sys.stdout.write(json.dumps({"losses": played.losses, "seconds": seconds}))
