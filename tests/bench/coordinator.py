"""One coordinator and 4,000 agents: its share of a core, how soon it notices a silent one, how soon all are back.

    .venv/bin/python tests/bench/coordinator.py [--quick] [-o json] [--agents N] [--rounds N]

Three processes on this machine. The coordinator is the real one of a local run, without machines: server, brain,
journal with its fsync, books (`programs/run_coordinator.py`). The agents are real links that beat once a second, in one
process that has no workers behind them (`programs/agent_swarm.py`). Each round: all agents join and train; CPU time is
read from the kernel's accounts over a window; five agents fall silent without closing their connections; the
coordinator is killed with SIGKILL and a successor, with a higher epoch, listens on its port.

`detection` counts from the limit (2.5 s after the last beat) to the brain's decision to give the agent up. `reconnect`
counts from the SIGKILL to the last agent's welcome, the start of the new process included. The peer is the naive server
of `peers/naive_coordinator.py`, with the same agents: a task and a deadline for each, a full scan per tick, no
brain, no gang, no journal; it does less, so it is no alternative.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_table import Row, alternate, arguments, beside, show
from programs import fleet_scene as scene

HERE = Path(__file__).parent
OURS, NAIVE = "programs.run_coordinator", "peers.naive_coordinator"
NUM_SILENT = 5
SPARE_DESCRIPTORS = 256
"""Files, pipes and libraries beside one socket per agent."""
EVENT_TIMEOUT_S = 90.0
EXIT_TIMEOUT_S = 10.0


class Child:
    """A process that tells events on stdout. `events` are read by a thread that ends with the process's output."""

    def __init__(self, module: str, settings: Mapping[str, object]) -> None:
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._module = module
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"events-{module}", daemon=True)
        self._reader.start()

    def wait_for(self, event: str, **values: object) -> dict[str, Any]:
        """The next event of this name and these values; others are passed over. Ends the benchmark when none comes."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            try:
                told = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                sys.exit(f"coordinator: {self._module}: expected event {event} within {EVENT_TIMEOUT_S:g} s, got none")
            if told is None:
                sys.exit(f"coordinator: {self._module}: expected event {event}, got exit code {self.process.wait()}")
            if told["event"] == event and all(told[key] == value for key, value in values.items()):
                return told

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def cpu_s(self) -> float:
        """CPU time of all its threads so far, from the scheduler's accounts (nanoseconds)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    def kill(self) -> None:
        """SIGKILL; returns when the process and the thread that reads from it are gone."""
        self.process.kill()
        self.process.wait(EXIT_TIMEOUT_S)
        self._reader.join(EXIT_TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)


@contextmanager
def running(module: str, settings: Mapping[str, object]) -> Iterator[Child]:
    """A child that does not outlive the block."""
    child = Child(module, settings)
    try:
        yield child
    finally:
        child.kill()


def play(module: str, *, num_agents: int, window_s: float) -> Mapping[str, float]:
    """One round with one kind of coordinator."""
    directory = tempfile.mkdtemp(prefix="behemoth-bench-")
    settings = {"port": 0, "epoch": 1, "num_agents": num_agents, "directory": directory}
    try:
        with running(module, settings) as first:
            port = first.wait_for("listening")["port"]
            with running("programs.agent_swarm", {"port": port, "num_agents": num_agents}) as agents:
                agents.wait_for("welcomed", epoch=1)
                values = _watch(first, agents, window_s) | _silence(first, agents, num_agents)
                killed_s = time.monotonic()
                first.kill()
                with running(module, settings | {"port": port, "epoch": 2}) as second:
                    listening_s = second.wait_for("listening")["at_s"]
                    back_s = agents.wait_for("welcomed", epoch=2)["at_s"]
        return values | {"reconnect": back_s - killed_s, "reconnect_listening": max(0.0, back_s - listening_s)}
    finally:
        shutil.rmtree(directory)


def _watch(coordinator: Child, agents: Child, window_s: float) -> dict[str, float]:
    """CPU time over a window of steady training, as shares of one core."""
    time.sleep(3 * scene.BEAT_S)  # the gang starts, its first steps are told
    start_s, ours_s, theirs_s = time.monotonic(), coordinator.cpu_s(), agents.cpu_s()
    time.sleep(window_s)
    span_s = time.monotonic() - start_s
    return {
        "cpu": 100 * (coordinator.cpu_s() - ours_s) / span_s,
        "swarm_cpu": 100 * (agents.cpu_s() - theirs_s) / span_s,
        "memory": coordinator.memory_mib(),
    }


def _silence(coordinator: Child, agents: Child, num_agents: int) -> dict[str, float]:
    """Median and worst delay of detection beyond the limit, over agents that fall silent at one moment."""
    victims = [f"node-{number * num_agents // NUM_SILENT:04d}" for number in range(NUM_SILENT)]
    agents.say(" ".join(victims))
    last_s = {told["node"]: told["last_beat_s"] for told in (agents.wait_for("frozen") for _ in victims)}
    evicted_s: dict[str, float] = {}
    while not last_s.keys() <= evicted_s.keys():
        told = coordinator.wait_for("evicted")
        evicted_s.setdefault(told["node"], told["at_s"])
    delays = sorted(evicted_s[node] - last_s[node] - scene.LIMIT_S for node in victims)
    return {
        "detection": 1000 * delays[len(delays) // 2],
        "detection_worst": 1000 * delays[-1],
        "wrong": float(len(evicted_s) - len(victims)),
    }


def allow_descriptors(num_agents: int) -> None:
    """Raises this process's soft limit, which the children inherit; ends the benchmark when the hard one is too low."""
    needed = num_agents + SPARE_DESCRIPTORS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(
            f"coordinator: expected at least {needed} open files for {num_agents} agents, got a hard limit of {hard}\n"
            f"hint: raise it (ulimit -Hn), or take fewer agents with --agents {hard - SPARE_DESCRIPTORS}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Measure, then print."""
    options = arguments(__doc__ or "", extend=_extend)
    num_agents = options.agents or (400 if options.quick else 4000)
    num_rounds = options.rounds or (1 if options.quick else 5)
    window_s = 2.0 if options.quick else 10.0
    allow_descriptors(num_agents)
    contenders = {
        kind: lambda module=module: play(module, num_agents=num_agents, window_s=window_s)
        for kind, module in (("ours", OURS), ("naive", NAIVE))
    }
    samples = alternate(contenders, num_rounds=num_rounds)
    show("coordinator", _rows(samples["ours"], samples["naive"]), options, notes=_notes(samples, num_agents, window_s))


def _rows(ours: Mapping[str, list[float]], naive: Mapping[str, list[float]]) -> list[Row]:
    kinds = {
        "cpu": ("CPU share", "% of a core"),
        "memory": ("resident memory", "MiB"),
        "detection": ("detection beyond the limit, median agent", "ms"),
        "detection_worst": ("detection beyond the limit, worst agent", "ms"),
        "reconnect": ("all back, from the SIGKILL", "s"),
        "reconnect_listening": ("all back, from listening", "s"),
    }
    return [beside(name, unit, ours[key], "naive", naive[key]) for key, (name, unit) in kinds.items()]


def _notes(samples: Mapping[str, Mapping[str, list[float]]], num_agents: int, window_s: float) -> list[str]:
    share = max(max(of["swarm_cpu"]) for of in samples.values())
    wrong = {kind: sum(of["wrong"]) for kind, of in samples.items()}
    return [
        f"{num_agents} agents, a beat every {scene.BEAT_S:g} s, limit {scene.LIMIT_S:g} s, CPU over {window_s:g} s; "
        f"{NUM_SILENT} agents fall silent a round",
        f"the process of all agents took up to {share:.0f}% of a core beside the coordinator",
        f"given up although they beat: {wrong['ours']:.0f} agents by ours, {wrong['naive']:.0f} by the naive one "
        "(more than 0: this machine was too busy to beat in time)",
    ]


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, help="default 4000, with --quick 400")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")


if __name__ == "__main__":
    main()
