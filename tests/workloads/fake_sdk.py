"""A private stand-in for `behemoth.sdk`: one rank of a run, whose checkpoint is a file in a folder.

It lets the reference programs be tested without agents: `python fake_sdk.py MODULE GANGS` runs MODULE's main for each
gang, a list of specs (JSON: rank, world_size, mesh, args, steps, save_at, folder, environment), and prints the losses.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

joined: list[FakeRun] = []
"""The last one is the run that `join` answers."""


class FakeState:
    """Remembers what was declared; refuses what the real one refuses: other than contiguous CPU memory."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.records: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}

    def array(self, name: str, local: Any, **declared: Any) -> None:
        assert name not in self.arrays, name
        assert local.is_contiguous() if hasattr(local, "is_contiguous") else local.flags.c_contiguous, name
        self.arrays[name] = local
        assert "shape" in declared, name

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
        self.may_update = False

    def restore(self, state: FakeState) -> int:
        path = self.folder / f"rank{self.rank}.npz"
        if not path.exists():
            return 0
        with np.load(path, allow_pickle=False) as saved:
            for name, local in state.arrays.items():
                raw_bytes(local)[:] = saved[name]
            header = msgspec.msgpack.decode(saved["header"].tobytes())
        for kind, (_, put) in state.records.items():
            put(header[kind])
        return int(header["step"])

    def steps(self, first: int, total: int | None = None) -> Iterator[int]:
        assert total is not None, "outside a run nobody else says how many steps there are"
        yield from range(first + 1, self.total_steps + 1)

    def fence(self, *, updates: bool = True) -> None:
        self.may_update = updates

    def report(self, step: int, *, loss: float, tokens: int) -> None:
        assert self.may_update, f"step {step} was updated without a fence"
        assert tokens >= 0
        self.losses.append(loss)

    def save(self, step: int, state: FakeState) -> None:
        self.may_update = False
        if step not in self.save_at:
            return
        header: dict[str, Any] = {"step": step}
        for kind, (get, _) in state.records.items():
            header[kind] = get()
        arrays: dict[str, Any] = {name: raw_bytes(local) for name, local in state.arrays.items()}
        np.savez(
            self.folder / f"rank{self.rank}.npz",
            header=np.frombuffer(msgspec.msgpack.encode(header), np.uint8),
            **arrays,
        )


def raw_bytes(local: Any) -> np.ndarray:
    """The array's own memory as uint8[bytes]; writing to it changes the array."""
    if isinstance(local, np.ndarray):
        return local.reshape(-1).view(np.uint8)
    torch = sys.modules["torch"]
    view: np.ndarray = local.view(-1).view(torch.uint8).numpy()
    return view


def replace_sdk(run: FakeRun | None = None) -> None:
    """Put the stand-in in the SDK's place, in a process that ends with the test; before a program is imported."""
    import behemoth.sdk as sdk

    if run is not None:
        joined.append(run)
    for name, value in {"join": lambda: joined[-1], "State": FakeState, "Run": FakeRun}.items():
        setattr(sdk, name, value)


def play(module: str, gangs: list[list[dict[str, Any]]]) -> list[list[list[float]]]:
    """Run `module`'s main for one gang after another, a forked process per rank, as the fork server does; the losses
    by gang and rank."""
    replace_sdk()
    program = importlib.import_module(module)
    losses = []
    for gang in gangs:
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [start(program, spec) for spec in gang]]
        assert ended == [0] * len(gang), ended
        losses.append([json.loads((Path(s["folder"]) / f"rank{s['rank']}.losses").read_text()) for s in gang])
    return losses


def start(program: Any, spec: dict[str, Any]) -> int:
    """Fork a rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run = FakeRun(spec)
        joined.append(run)
        os.environ.update(spec["environment"])
        program.main()
        (run.folder / f"rank{run.rank}.losses").write_text(json.dumps(run.losses))
        code = 0
    except BaseException:  # noqa: BLE001 (the edge of a process that must not return into its parent's code)
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(play(sys.argv[1], json.loads(sys.argv[2]))))
