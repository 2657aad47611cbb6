"""From a fault to the next completed step, and to regained progress: ours by phase, beside torchrun with DCP.

    .venv/bin/python tests/bench/recover.py [--quick] [-o json] [--repetitions N] [--keep]

Every round is one run of the reference model (4 ranks on 2 nodes and a spare, plain processes) with two faults of each
kind, and one run of the same model under `torchrun --max-restarts` (`peers/torchrun_dcp.py`: same model, same arrays,
synchronous DCP saves) with the same worker kill twice; who goes first changes. Goals on 2 cores: worker death <= 1 s,
node loss seen by closed sockets <= 1.5 s, silent node loss <= 4 s with a limit of 2.5 s.

Time starts when the fault is inflicted (the drill's event; for torchrun the SIGKILL), not when it is noticed. Phases
are those of the run's own ledger, in `summary.json`. `regained` is the completion of the furthest step made before the
fault: it holds the steps that are trained once more, so it depends on the distance to the last save, 20 steps when the
drill is due; a drill strikes when the coordinator hears of the step, some steps later, torchrun is struck at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_table import Row, alone, arguments, beside, show

HERE = Path(__file__).parent
BEHEMOTH = Path(sys.executable).with_name("behemoth")
SAVE_EVERY = 40
DUE_AFTER = 20
"""Steps from a save to a fault: that save is committed by then, and the next one has not begun."""
TOTAL_STEPS = 480
DRILLS = (
    ("worker", "kill rank 1 at step 60"),
    ("node", "lose node 1 at step 100"),
    ("worker", "kill rank 2 at step 180"),
    ("silent", "freeze node 1 at step 260"),
    ("node", "lose node 1 at step 340"),
    ("silent", "freeze node 1 at step 420"),
)
"""Node 1 is whoever holds slot 1 at that moment; a lost node comes back as the spare before the next one is lost."""
PEER_KILLS, PEER_STEPS = (60, 140), 200
NUM_EACH = 2
KINDS = {"worker": "worker death", "node": "node loss, sockets close", "silent": "node loss, silent (2.5 s limit)"}
PHASES = {"detect": "detect", "restart": "restart", "restore": "restore", "first_step": "first step"}
PEER = "torchrun + DCP"
_NOTES = (
    f"save every {SAVE_EVERY} steps, fault {DUE_AFTER} steps later; times from the fault, not from its detection",
    "goals to the next step, on 2 cores: worker death <= 1 s, sockets close <= 1.5 s, silent <= 4 s",
)
_NEW_STORE_PER_RESTART = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torchrun 2.15 lends its own store to the workers of every restart; they then meet the addresses of the
dead ones there, and every restart fails."""
RUN_TIMEOUT_S = 400.0
POLL_S = 0.002

RUN_FILE = f"""\
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata:
  name: recover
spec:
  model:
    ref: tiny-moe
  nodes:
    count: 2
    gpus_per_node: 2
    spares: 1
  mesh:
    dp: 4
    ep: 2
    edp: 2
  workload:
    entrypoint: behemoth.workloads.tiny_moe:main
    preload: [torch, torch._dynamo, behemoth.workloads.tiny_moe]
    steps: {TOTAL_STEPS}
  checkpoint:
    every:
      steps: {SAVE_EVERY}
  recovery:
    heartbeat_limit: 2.5s
  drill:
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Seconds of one fault from its infliction. `phases` add up to `next_step`."""

    kind: str
    next_step: float
    regained: float
    phases: Mapping[str, float]


def main() -> None:
    """Measure, then print."""
    options = arguments(__doc__ or "", extend=_extend)
    num_samples = options.repetitions or (NUM_EACH if options.quick else 20)
    ours: list[Recovery] = []
    peers: list[Recovery] = []
    contenders = [lambda place: ours.extend(play_ours(place)), lambda place: peers.extend(play_peer(place))]
    number = 0
    while min(_num_of(kind, ours) for kind in KINDS) < num_samples or _num_of("worker", peers) < num_samples:
        for contender in contenders[:: 1 if number % 2 == 0 else -1]:
            in_directory(contender, keep=options.keep)
        number += 1
        print(f"round {number} done", file=sys.stderr, flush=True)
    show("recover", rows(ours, peers, num_samples), options, notes=_NOTES)


def _num_of(kind: str, recoveries: Sequence[Recovery]) -> int:
    return sum(recovery.kind == kind for recovery in recoveries)


def in_directory(play: Any, *, keep: bool) -> None:
    """Runs `play` in a fresh directory and removes it, or names it when it is to be kept."""
    place = Path(tempfile.mkdtemp(prefix="behemoth-bench-recover-"))
    try:
        play(place)
    finally:
        if keep:
            print(f"kept {place}", file=sys.stderr)
        else:
            shutil.rmtree(place, ignore_errors=True)


def play_ours(place: Path) -> list[Recovery]:
    """One run with every drill; a recovery per drill."""
    file, directory = place / "run.yaml", place / "run"
    file.write_text(RUN_FILE + "".join(f"    - {sentence}\n" for _, sentence in DRILLS))
    command = [str(BEHEMOTH), "run", str(file), "--dir", str(directory), "--runtime", "process", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    if done.returncode != 0:
        sys.exit(f"recover: our run: expected exit code 0, got {done.returncode}:\n{done.stderr[-4000:]}")
    summary = json.loads((directory / "summary.json").read_text())
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return read_recoveries(summary, events)


def read_recoveries(summary: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[Recovery]:
    """The ledger's row of each drill: the fault that was decided before the next drill struck."""
    struck_us = [_struck_us(sentence, events) for _, sentence in DRILLS]
    found = []
    for (kind, _), from_us, to_us in zip(DRILLS, struck_us, [*struck_us[1:], math.inf], strict=True):
        fault = next((row for row in summary["faults"] if from_us <= _decided_us(row) < to_us), None)
        if fault is None:
            sys.exit(f"recover: expected a row of the ledger for each drill, got none for {kind} at {from_us} us")
        found.append(_recovery(kind, fault, from_us))
    return found


def _struck_us(sentence: str, events: Sequence[Mapping[str, Any]]) -> int:
    told = (event["at_us"] for event in events if event["reason"] == "Drill" and event["message"] == sentence)
    found = next(told, None)
    if found is None:
        sys.exit(f"recover: expected an event for drill {sentence!r}, got none")
    return int(found)


def _decided_us(fault: Mapping[str, Any]) -> float:
    return float(fault["at_us"] + fault["detect_s"] * 1e6)


def _recovery(kind: str, fault: Mapping[str, Any], struck_us: int) -> Recovery:
    missing = [name for name in ("to_first_step_s", "to_regained_s") if fault[name] is None]
    if missing:
        sys.exit(f"recover: fault {fault['reason']!r}: expected the run to recover before the next, got no {missing}")
    ahead_s = (fault["at_us"] - struck_us) / 1e6  # the ledger counts from the first sign, this benchmark from the fault
    next_step = ahead_s + fault["to_first_step_s"]
    detect = ahead_s + fault["detect_s"]
    rest = next_step - detect - fault["restart_s"] - fault["restore_s"]
    return Recovery(
        kind=kind,
        next_step=next_step,
        regained=ahead_s + fault["to_regained_s"],
        phases={
            "detect": detect,
            "restart": fault["restart_s"],
            "restore": fault["restore_s"],
            "first_step": rest,
        },
    )


def play_peer(place: Path) -> list[Recovery]:
    """One job under torchrun whose rank 1 is killed after each of PEER_KILLS."""
    (place / "steps").touch()
    program = [str(HERE / "peers" / "torchrun_dcp.py"), str(place), str(PEER_STEPS), str(SAVE_EVERY)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=4",
        "--max-restarts=99",
    ]
    with (place / "output").open("wb") as output:
        job = subprocess.Popen(
            [*torchrun, *program],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", **_NEW_STORE_PER_RESTART},
            start_new_session=True,
        )
        try:
            kills = [(step, _kill_rank_after(step, place, job)) for step in PEER_KILLS]
            code = job.wait(RUN_TIMEOUT_S)
        finally:
            _end(job)
    if code != 0:
        sys.exit(f"recover: torchrun: expected exit code 0, got {code}:\n{(place / 'output').read_text()[-4000:]}")
    return [_peer_recovery(_steps(place), killed_s) for _, killed_s in kills]


def _kill_rank_after(step: int, place: Path, job: subprocess.Popen[bytes]) -> float:
    """Waits for the step, kills rank 1; when that was."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while max((done for done, _ in _steps(place)), default=0) < step:
        if job.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"recover: torchrun: expected step {step}, got none: {(place / 'output').read_text()[-4000:]}")
        time.sleep(POLL_S)
    killed_s = time.monotonic()
    os.kill(int((place / "rank-1.pid").read_text()), signal.SIGKILL)
    return killed_s


def _steps(place: Path) -> list[tuple[int, float]]:
    """What rank 0 has completed, in order, repetitions included; a line that is being written is left out."""
    lines = (place / "steps").read_text().split("\n")[:-1]
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def _peer_recovery(steps: Sequence[tuple[int, float]], killed_s: float) -> Recovery:
    """A step that its survivors still completed after the kill belongs to the old attempt: the new one starts lower."""
    last = max(number for number, (step, at_s) in enumerate(steps) if at_s < killed_s)
    reborn = next(number for number in range(last + 1, len(steps)) if steps[number][0] <= steps[number - 1][0])
    furthest = max(step for step, _ in steps[:reborn])
    regained_s = next(at_s for step, at_s in steps[reborn:] if step >= furthest)
    return Recovery(kind="worker", next_step=steps[reborn][1] - killed_s, regained=regained_s - killed_s, phases={})


def _end(job: subprocess.Popen[bytes]) -> None:
    """The job's whole session, when it is still there."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(RUN_TIMEOUT_S)


def rows(ours: Sequence[Recovery], peers: Sequence[Recovery], num_samples: int) -> list[Row]:
    """Medians by kind and phase, beside the peer where it meets the same fault, and the worst of each."""
    found: list[Row] = []
    for kind, name in KINDS.items():
        mine = [recovery for recovery in ours if recovery.kind == kind][:num_samples]
        theirs = [recovery for recovery in peers if recovery.kind == kind][:num_samples]
        found.extend(_totals(f"{name}: to the next step", *_values("next_step", mine, theirs)))
        found.extend(
            alone(f"{name}:   {label}", "s", [recovery.phases[phase] for recovery in mine])
            for phase, label in PHASES.items()
        )
        found.extend(_totals(f"{name}: to regained progress", *_values("regained", mine, theirs)))
    return found


def _values(field: str, *sides: Sequence[Recovery]) -> list[list[float]]:
    return [[getattr(recovery, field) for recovery in side] for side in sides]


def _totals(name: str, ours: list[float], theirs: list[float]) -> list[Row]:
    if not theirs:
        return [alone(name, "s", ours), alone(f"{name}, worst of {len(ours)}", "s", [max(ours)])]
    return [
        beside(name, "s", ours, PEER, theirs),
        beside(f"{name}, worst of {len(ours)}", "s", [max(ours)], PEER, [max(theirs)]),
    ]


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, help="faults of each kind; default 20, with --quick 2")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the runs")


if __name__ == "__main__":
    main()
