"""How long an operator waits for the command line itself: `--help` and other answers that need no run.

Beside `python -c pass`, the least that any Python program takes, in turns. Wall time of the whole process, from its
start until it has ended, and its CPU time, which says more on a machine that others use too.
Run as `.venv/bin/python tests/bench/cli.py`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bench_table import Round, alternate, arguments, beside, show

NUM_ROUNDS = 20
GOAL_S = 0.150
PEER = "python -c pass"
_BEHEMOTH = str(Path(sys.executable).with_name("behemoth"))
_EXAMPLE = str(Path(__file__).parents[2] / "manifests" / "examples" / "numpy.yaml")
COMMANDS: Mapping[str, list[str]] = {
    "behemoth --help": [_BEHEMOTH, "--help"],
    "behemoth version": [_BEHEMOTH, "version"],
    "behemoth explain spec.mesh": [_BEHEMOTH, "explain", "spec.mesh"],
    "behemoth plan": [_BEHEMOTH, "plan", "-f", _EXAMPLE],
}


def main() -> int:
    """0 when the goal is met, or when the round was a quick one, which claims nothing."""
    options = arguments(__doc__ or "")
    num_rounds = 3 if options.quick else NUM_ROUNDS
    contenders: dict[str, Round] = {name: partial(_run, command) for name, command in COMMANDS.items()}
    contenders[PEER] = partial(_run, [sys.executable, "-c", "pass"])
    samples = alternate(contenders, num_rounds=num_rounds)
    rows = [
        beside(f"{name}, {of}", "s", samples[name][metric], PEER, samples[PEER][metric])
        for metric, of in (("wall_s", "wall"), ("cpu_s", "CPU"))
        for name in COMMANDS
    ]
    show("cli", rows, options, notes=[f"goal: behemoth --help in at most {GOAL_S:.3f} s, median of {NUM_ROUNDS}"])
    return 0 if options.quick or rows[0].ours <= GOAL_S else 1


def _run(command: list[str]) -> Mapping[str, float]:
    start_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    # Without a time limit: with one, Python looks for the end every 50 ms only.
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall_s, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


if __name__ == "__main__":
    sys.exit(main())
