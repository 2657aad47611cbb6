"""Every adapter of the Executor port passes the suite that ships with the package, and survives lost workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from behemoth.app.batches.messages import Hello
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.workers import MAX_LOSSES, WorkerExecutor
from behemoth.base.errors import Unavailable
from behemoth.base.ids import NodeId
from behemoth.ports import Batch, Runtime
from behemoth.rayrt.keeper import descendants
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.testing.batch_program import SuiteWork
from behemoth.testing.executor import ExecutorConformance, doubles
from behemoth.wire.frames import encode_frame
from rayrt.borrowed import Borrowed

NODES = [NodeId("n0"), NodeId("n1")]
ARGV = (sys.executable, "-m", "behemoth.testing.batch_program")
LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""


def on(runtime: Runtime) -> WorkerExecutor:
    return WorkerExecutor(runtime, threads=2, host="127.0.0.1", address="127.0.0.1", argv=ARGV)


class TestThreads(ExecutorConformance):
    @pytest.fixture
    def executor(self) -> Iterator[ThreadExecutor]:
        executor = ThreadExecutor(threads=4, open_work=SuiteWork)
        yield executor
        executor.close()


class WorkerConformance(ExecutorConformance):
    """What only executors with workers can show."""

    def test_what_a_killed_worker_had_under_way_is_done_by_others(
        self, executor: WorkerExecutor, tmp_path: Path
    ) -> None:
        batches = [*doubles(range(40)), Batch(number=40, data=b"die-once "), *doubles(range(41, 60))]
        found = list(executor.run(str(tmp_path).encode(), batches))
        assert sorted(result.number for result in found) == list(range(60))
        assert {result.data for result in found if result.number == 40} == {b"alive"}
        assert len(list(tmp_path.glob("die-once-.*"))) == 2

    def test_a_batch_that_kills_every_worker_ends_the_job(self, executor: WorkerExecutor, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="batch 0: expected a worker to survive it, got 3 lost ones") as caught:
            list(executor.run(str(tmp_path).encode(), [Batch(number=0, data=b"die ")]))
        assert caught.value.code == "batch-kills-workers"
        assert len(list(tmp_path.glob("die-.*"))) == MAX_LOSSES

    def test_closing_leaves_no_worker(self, executor: WorkerExecutor, tmp_path: Path) -> None:
        list(executor.run(str(tmp_path).encode(), doubles(range(9))))
        executor.close()
        assert not [pid for pid in descendants(os.getpid()) if b"batch_program" in command_of(pid)]


class TestProcesses(WorkerConformance):
    @pytest.fixture
    def executor(self) -> Iterator[WorkerExecutor]:
        executor = on(SubprocessRuntime(NODES))
        yield executor
        executor.close()


class TestRay(WorkerConformance):
    @pytest.fixture
    def executor(self, embedded_ray: Runtime) -> Iterator[WorkerExecutor]:
        executor = on(Borrowed(embedded_ray))
        yield executor
        executor.close()


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_nodes_that_keep_no_worker_are_left_alone_and_then_nobody_is_left(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "raise SystemExit(1)")
    executor = WorkerExecutor(SubprocessRuntime(NODES), threads=1, host="127.0.0.1", address="127.0.0.1", argv=argv)
    try:
        with pytest.raises(Unavailable, match="expected a node that keeps one, got none: node n") as caught:
            list(executor.run(str(tmp_path).encode(), doubles(range(3))))
        assert caught.value.code == "no-workers"
    finally:
        executor.close()


class LosesNodes(SubprocessRuntime):
    """Some machines are gone when a worker is to be started there."""

    def __init__(self, lost: Sequence[NodeId]) -> None:
        super().__init__(NODES)
        self._lost = lost

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        if node in self._lost:
            raise Unavailable(f"agent on node {node}: expected its machine, got none any more")
        super().start_agent(node, incarnation=incarnation, argv=argv, env=env)


@pytest.mark.parametrize("lost", NODES)
def test_a_node_on_which_no_worker_can_be_started_is_left_out(tmp_path: Path, lost: NodeId) -> None:
    executor = on(LosesNodes([lost]))
    try:
        assert len(list(executor.run(str(tmp_path).encode(), doubles(range(3))))) == 3
    finally:
        executor.close()


def test_without_a_node_on_which_a_worker_can_be_started_it_is_told_why(tmp_path: Path) -> None:
    executor = on(LosesNodes(NODES))
    try:
        with pytest.raises(Unavailable, match="got none: node n1: agent on node n1: expected its machine"):
            list(executor.run(str(tmp_path).encode(), doubles(range(3))))
    finally:
        executor.close()


def test_whoever_has_no_token_of_this_executor_is_let_in_nowhere(tmp_path: Path) -> None:
    executor = on(SubprocessRuntime(NODES[:1]))
    port = executor._listener.getsockname()[1]
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    try:
        strangers[0].sendall(encode_frame(Hello(node="n0", incarnation=1, token="0" * 64)))
        strangers[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        strangers[2].sendall(b"\xff\xff\xff\xff")
        assert len(list(executor.run(str(tmp_path).encode(), doubles(range(20))))) == 20
        for stranger in strangers:
            stranger.settimeout(LIMIT_S)
            assert stranger.recv(100) == b""
    finally:
        executor.close()
        for stranger in strangers:
            stranger.close()


TALKS_RUBBISH_FIRST = """
import os, runpy, socket
from behemoth.app.batches.worker import INCARNATION_ENV, take_settings
from behemoth.wire.frames import encode_frame
if os.environ[INCARNATION_ENV] == "1":
    settings = take_settings(os.environ)
    with socket.create_connection((settings.host, settings.port)) as connection:
        connection.sendall(encode_frame(settings.hello))
        connection.recv(1000)  # the job
        connection.sendall(encode_frame("rubbish"))
        while connection.recv(1000):
            pass
else:
    runpy.run_module("behemoth.testing.batch_program", run_name="__main__")
"""


def test_a_worker_that_talks_rubbish_is_replaced(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", TALKS_RUBBISH_FIRST)
    executor = WorkerExecutor(SubprocessRuntime(NODES[:1]), threads=1, host="127.0.0.1", address="127.0.0.1", argv=argv)
    try:
        assert len(list(executor.run(str(tmp_path).encode(), doubles(range(3))))) == 3
    finally:
        executor.close()


HANGS_UP = """
import os, runpy, socket, sys, time
from pathlib import Path
from behemoth.app.batches.worker import NODE_ENV, take_settings
from behemoth.wire.frames import FrameReader, encode_frame
if os.environ[NODE_ENV] == "n0":
    settings, reader, bodies = take_settings(os.environ), FrameReader(), []
    with socket.create_connection((settings.host, settings.port)) as connection:
        connection.sendall(encode_frame(settings.hello))
        while len(bodies) < 2:  # the job, and a batch
            bodies += reader.feed(connection.recv(1000))
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(120)
else:
    runpy.run_module("behemoth.testing.batch_program", run_name="__main__")
"""


def test_a_worker_that_has_hung_up_and_goes_on_is_ended_when_its_job_is_given_up(tmp_path: Path) -> None:
    folder, told = tmp_path / "job", tmp_path / "pid"
    folder.mkdir()
    argv = (sys.executable, "-c", HANGS_UP, str(told))
    executor = WorkerExecutor(SubprocessRuntime(NODES), threads=1, host="127.0.0.1", address="127.0.0.1", argv=argv)
    try:
        deadline_s = time.monotonic() + LIMIT_S
        for _ in executor.run(str(folder).encode(), (Batch(number=one, data=b"nap ") for one in range(10_000))):
            if told.exists() and told.read_text() and executor._nodes[NODES[0]].connection is None:
                break
            assert time.monotonic() < deadline_s
        assert command_of(int(told.read_text())) != b""
        executor.stop()
        assert command_of(int(told.read_text())) == b""
    finally:
        executor.close()


DRIVER = """
import os, sys
from behemoth.app.batches.workers import WorkerExecutor
from behemoth.base.ids import NodeId
from behemoth.rayrt.keeper import descendants
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.testing.executor import doubles
argv = (sys.executable, "-m", "behemoth.testing.batch_program")
runtime = SubprocessRuntime([NodeId("n0")])
made = WorkerExecutor(runtime, threads=1, host="127.0.0.1", address="127.0.0.1", argv=argv)
results = made.run(sys.argv[1].encode(), doubles(range(1000)))
next(results)
print(*descendants(os.getpid()), flush=True)
sys.stdin.read()
"""


def test_when_the_process_with_the_executor_is_killed_its_workers_end(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        below = [int(word) for word in driver.stdout.readline().split()]
        assert below
        driver.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + LIMIT_S
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline_s, "workers outlive their executor"
        time.sleep(0.02)
