"""Conformance suite of the Runtime port: what any adapter must do, shown with real processes.

A test class inherits `RuntimeConformance` and gives it a `runtime` fixture with at least two nodes on this machine. The
agents are tiny scripts of the suite's own: it must not need Behemoth's agent. Adapters live in `behemoth.rayrt`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest

from behemoth.base.errors import Conflict, NotFound
from behemoth.base.ids import NodeId
from behemoth.ports import AGENT_LOG_VARIABLE, NodeGone, Runtime

WAIT_S = 60.0
"""Bound of every wait of the suite, half of what its programs sleep; on a busy machine adapters are slow, not wrong."""

_OBEDIENT = """
import os, select
poller = select.poll(); poller.register(int(os.environ["BEHEMOTH_LIFELINE_FD"]), select.POLLIN)
tell(); poller.poll(120_000)
open(os.environ["SUITE_FILE"] + ".obeyed", "w").close()
"""
_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)
tell(); time.sleep(120)
"""
_FAMILY = """
import os, signal, subprocess, sys, time
sleeper = [sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(120)"]
same_group = subprocess.Popen(sleeper)
own_session = subprocess.Popen(sleeper, start_new_session=True)
nested = "import os, subprocess, sys; print(subprocess.Popen(%r, start_new_session=True, stdout=2).pid)" % (sleeper,)
orphan = int(subprocess.run([sys.executable, "-c", nested], stdout=subprocess.PIPE, timeout=60).stdout)
tell(same_group.pid, own_session.pid, orphan); time.sleep(120)
"""
_TELL = """
import os
def tell(*pids):
    path = os.environ["SUITE_FILE"]
    with open(path + ".new", "w") as file: file.write(" ".join(map(str, (os.getpid(), *pids))))
    os.rename(path + ".new", path)
"""


class SuiteAgents:
    """Starts the suite's scripts on a runtime; incarnations rise over its life, so that a runtime can be shared."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime = runtime
        self._folder = folder

    def start(self, node: NodeId, script: str, *, incarnation: int = 0) -> tuple[int, list[int]]:
        """Start `script` and wait until it runs: (incarnation, process ids of it and below, the agent's first)."""
        incarnation = incarnation or next(_INCARNATIONS)
        path = self._folder / f"{node}-{incarnation}"
        env = {"SUITE_FILE": str(path), AGENT_LOG_VARIABLE: f"{path}.log"}
        argv = [sys.executable, "-S", "-c", _TELL + script]
        self._runtime.start_agent(node, incarnation=incarnation, argv=argv, env=env)
        _until(path.exists, f"agent of node {node} to run")
        return incarnation, [int(word) for word in path.read_text().split()]

    def has_obeyed(self, node: NodeId, incarnation: int) -> bool:
        """Whether the agent ended itself because its lifeline did."""
        return (self._folder / f"{node}-{incarnation}.obeyed").exists()


_INCARNATIONS = count(1)


class RuntimeConformance:
    """Inherit, and give a `runtime` fixture. It may be shared by all tests where a start is dear; what `close` must
    leave behind is `check_close_leaves_nothing`, for a runtime of its own."""

    @pytest.fixture
    def agents(self, runtime: Runtime, tmp_path: Path) -> SuiteAgents:
        return SuiteAgents(runtime, tmp_path)

    @pytest.fixture(autouse=True)
    def _leave_nothing_running(self, runtime: Runtime) -> None:
        """A shared runtime starts each test without news of the test before."""
        runtime.gone(timeout_s=0)

    def test_nodes_keep_their_order(self, runtime: Runtime) -> None:
        assert len(runtime.nodes()) >= 2
        assert list(runtime.nodes()) == list(runtime.nodes())
        assert len(set(runtime.nodes())) == len(runtime.nodes())

    def test_a_second_start_of_the_same_incarnation_does_nothing(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, pids = agents.start(node, _OBEDIENT)
        assert agents.start(node, _OBEDIENT, incarnation=incarnation) == (incarnation, pids)
        assert list(runtime.gone(timeout_s=0.2)) == []
        runtime.stop_agent(node, incarnation=incarnation)
        assert_dead(pids)

    def test_an_ended_incarnation_is_not_started_again(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, pids = agents.start(node, _OBEDIENT)
        runtime.stop_agent(node, incarnation=incarnation)
        assert agents.start(node, _OBEDIENT, incarnation=incarnation) == (incarnation, pids)
        assert_dead(pids)

    def test_a_newer_incarnation_replaces_the_older_one(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        _, older_pids = agents.start(node, _OBEDIENT)
        newer, newer_pids = agents.start(node, _OBEDIENT)
        assert_dead(older_pids)
        assert is_alive(newer_pids[0])
        assert list(runtime.gone(timeout_s=0.2)) == []
        runtime.stop_agent(node, incarnation=newer)

    def test_a_start_of_an_older_incarnation_is_refused(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        older = next(_INCARNATIONS)
        newer, _ = agents.start(node, _OBEDIENT)
        with pytest.raises(Conflict):
            runtime.start_agent(node, incarnation=older, argv=[sys.executable, "-c", ""], env={})
        runtime.stop_agent(node, incarnation=newer)

    def test_an_unknown_node_is_refused(self, runtime: Runtime) -> None:
        with pytest.raises(NotFound, match="no-such-node"):
            runtime.start_agent(NodeId("no-such-node"), incarnation=1, argv=[sys.executable, "-c", ""], env={})

    def test_stopping_a_missing_agent_is_fine(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[1]
        runtime.stop_agent(node, incarnation=next(_INCARNATIONS))
        incarnation, _ = agents.start(node, _OBEDIENT)
        runtime.stop_agent(node, incarnation=incarnation)
        runtime.stop_agent(node, incarnation=incarnation)

    def test_stopping_another_incarnation_leaves_the_agent_alone(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        older = next(_INCARNATIONS)
        incarnation, pids = agents.start(node, _OBEDIENT)
        runtime.stop_agent(node, incarnation=older)
        assert is_alive(pids[0])
        runtime.stop_agent(node, incarnation=incarnation)
        assert_dead(pids)

    def test_an_agent_that_was_stopped_is_not_told_gone(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, _ = agents.start(node, _OBEDIENT)
        runtime.stop_agent(node, incarnation=incarnation)
        assert list(runtime.gone(timeout_s=0.3)) == []

    def test_an_agent_ends_itself_when_its_lifeline_does(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, _ = agents.start(node, _OBEDIENT)
        runtime.stop_agent(node, incarnation=incarnation)
        assert agents.has_obeyed(node, incarnation)

    def test_an_agent_that_exits_is_told_once_with_its_code(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, _ = agents.start(node, "tell(); raise SystemExit(7)")
        (event,) = await_gone(runtime)
        assert (event.node, event.incarnation) == (node, incarnation)
        assert "code 7" in event.reason
        assert list(runtime.gone(timeout_s=0.3)) == []

    def test_a_killed_agent_is_told_with_its_signal(self, runtime: Runtime, agents: SuiteAgents) -> None:
        first, second = runtime.nodes()[:2]
        killed, pids = agents.start(first, _OBEDIENT)
        other, other_pids = agents.start(second, _OBEDIENT)
        os.kill(pids[0], signal.SIGKILL)
        (event,) = await_gone(runtime)
        assert (event.node, event.incarnation) == (first, killed)
        assert "signal 9" in event.reason
        assert is_alive(other_pids[0])
        runtime.stop_agent(second, incarnation=other)

    def test_a_program_that_does_not_exist_is_told_gone(self, runtime: Runtime) -> None:
        node, incarnation = runtime.nodes()[0], next(_INCARNATIONS)
        runtime.start_agent(node, incarnation=incarnation, argv=["/no/such/program"], env={})
        (event,) = await_gone(runtime)
        assert event.incarnation == incarnation
        assert "/no/such/program" in event.reason

    def test_children_of_a_killed_agent_die_with_it(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        _, pids = agents.start(node, _FAMILY)
        assert len(pids) == 4
        os.kill(pids[0], signal.SIGKILL)
        await_gone(runtime)
        assert_dead(pids)

    def test_stop_ends_children_in_groups_of_their_own(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, pids = agents.start(node, _FAMILY)
        runtime.stop_agent(node, incarnation=incarnation)
        assert_dead(pids)

    def test_an_agent_that_ignores_sigterm_dies(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, pids = agents.start(node, _STUBBORN)
        runtime.stop_agent(node, incarnation=incarnation)
        assert_dead(pids)

    def test_a_frozen_agent_dies(self, runtime: Runtime, agents: SuiteAgents) -> None:
        node = runtime.nodes()[0]
        incarnation, pids = agents.start(node, _OBEDIENT)
        os.kill(pids[0], signal.SIGSTOP)
        runtime.stop_agent(node, incarnation=incarnation)
        assert_dead(pids)
        assert not agents.has_obeyed(node, incarnation)

    def test_waiting_for_nothing_ends_in_time(self, runtime: Runtime) -> None:
        before_s = time.monotonic()
        assert list(runtime.gone(timeout_s=0.2)) == []
        assert 0.15 <= time.monotonic() - before_s < WAIT_S


def check_close_leaves_nothing(runtime: Runtime, folder: Path) -> None:
    """Start families on two nodes, close, and look for them by pid, process group and session. Uses the runtime up."""
    agents = SuiteAgents(runtime, folder)
    pids = [pid for node in runtime.nodes()[:2] for pid in agents.start(node, _FAMILY)[1]]
    runtime.close()
    assert_dead(pids)
    assert members_of(pids) == []


def await_gone(runtime: Runtime) -> Sequence[NodeGone]:
    """The next news of ended agents. Raises AssertionError when none comes in time."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        if events := runtime.gone(timeout_s=1.0):
            return events
    raise AssertionError(f"expected news of an ended agent within {WAIT_S} s, got none")


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def assert_dead(pids: Sequence[int]) -> None:
    """What a runtime calls ended is dead when it says so, not a moment later."""
    assert [pid for pid in pids if is_alive(pid)] == []


def members_of(leaders: Sequence[int]) -> list[int]:
    """Live processes whose process group or session is one of `leaders` (proc_pid_stat(5), fields 5 and 6)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if {int(fields[2]), int(fields[3])} & set(leaders):
            found.append(int(entry.name))
    return found


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"expected {what} within {WAIT_S} s"
        time.sleep(0.01)
