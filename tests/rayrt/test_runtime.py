"""A real Ray: what only it can show, beside the conformance suite in tests/contract."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from behemoth.base.errors import Invalid, Unavailable
from behemoth.base.ids import NodeId
from behemoth.rayrt import runtime as runtime_module
from behemoth.rayrt.keeper import descendants
from behemoth.rayrt.runtime import RayRuntime, embed_ray, join_ray
from behemoth.testing.runtime import (
    WAIT_S,
    SuiteAgents,
    assert_dead,
    await_gone,
    check_close_leaves_nothing,
    is_alive,
    members_of,
)

SLEEP = "tell(); import time; time.sleep(120)"
NODES = [NodeId("n0"), NodeId("n1")]

DRIVER = """
import sys, time
from pathlib import Path
from behemoth.base.ids import NodeId
from behemoth.rayrt.keeper import descendants
from behemoth.rayrt.runtime import embed_ray
from behemoth.testing.runtime import SuiteAgents
import os
folder = Path(sys.argv[1])
runtime = embed_ray([NodeId("n0"), NodeId("n1")])
agents = SuiteAgents(runtime, folder)
pids = [agents.start(node, "tell(); import time; time.sleep(120)")[1][0] for node in runtime.nodes()]
print(runtime.link.temp_dir, *pids, "-", *descendants(os.getpid()), flush=True)
time.sleep(120)
"""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def test_a_killed_actor_is_told_takes_its_agent_along_and_is_replaced(tmp_path: Path) -> None:
    runtime = embed_ray(NODES)
    try:
        agents = SuiteAgents(runtime, tmp_path)
        incarnation, pids = agents.start(NODES[0], SLEEP)
        _, other_pids = agents.start(NODES[1], SLEEP)
        actor_pid = parent_of(parent_of(pids[0]))
        os.kill(actor_pid, signal.SIGKILL)
        (event,) = await_gone(runtime)
        assert (event.node, event.incarnation) == (NODES[0], incarnation)
        assert "actor" in event.reason
        wait_until_dead(pids)
        assert is_alive(other_pids[0])
        _, new_pids = agents.start(NODES[0], SLEEP)
        assert is_alive(new_pids[0])
        below = descendants(runtime.link.keeper_pid)
        check_close_leaves_nothing(runtime, tmp_path)
        assert_dead([*below, runtime.link.keeper_pid])
        assert not runtime.link.temp_dir.exists()
    finally:
        runtime.link.close()


def test_when_ray_itself_dies_every_agent_is_told_gone_and_the_next_start_brings_it_back(tmp_path: Path) -> None:
    runtime = embed_ray(NODES)
    try:
        agents = SuiteAgents(runtime, tmp_path)
        pids = [agents.start(node, SLEEP)[1][0] for node in NODES]
        (host_pid, *_) = descendants(runtime.link.keeper_pid)
        os.kill(host_pid, signal.SIGKILL)
        assert sorted(event.node for event in await_gone(runtime)) == sorted(NODES)
        assert_dead(pids)
        assert list(runtime.gone(timeout_s=0.1)) == []
        _, (again, *_) = agents.start(NODES[0], SLEEP)
        assert is_alive(again)
    finally:
        runtime.close()


def test_killing_the_run_leaves_nothing_of_ray_or_ours(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        temp_dir, *words = driver.stdout.readline().split()
        dash = words.index("-")
        agents, below = [int(word) for word in words[:dash]], [int(word) for word in words[dash + 1 :]]
        assert len(agents) == 2
        assert any("raylet" in command_of(pid) for pid in below)
        driver.send_signal(signal.SIGKILL)
    wait_until_dead(agents)
    wait_until_dead(below)
    assert members_of(below) == []
    assert not Path(temp_dir).exists()


def test_a_running_ray_is_joined_by_its_address(
    embedded_ray: RayRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper_pid = embedded_ray.link.keeper_pid
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token_of(keeper_pid))
    joined = join_ray(gcs_address(keeper_pid))
    try:
        (node,) = joined.nodes()
        assert node.startswith(socket.gethostname())
        _, pids = SuiteAgents(joined, tmp_path).start(node, SLEEP)
        with pytest.raises(Unavailable, match="no-such-node"):
            joined.start_agent(NodeId("no-such-node"), incarnation=1, argv=["true"], env={})
    finally:
        joined.close()
    assert_dead(pids)
    SuiteAgents(embedded_ray, tmp_path).start(NODES[0], SLEEP)


def test_an_address_where_nobody_listens_is_unavailable_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}") as caught:
        join_ray(f"127.0.0.1:{port}")
    assert "ray status" in caught.value.hint


def test_an_address_that_accepts_and_never_answers_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "JOIN_LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(Unavailable, match="expected to answer join within 1 s, got no answer") as caught:
            join_ray(f"127.0.0.1:{server.getsockname()[1]}")
        assert caught.value.hint


def test_an_embedded_ray_admits_nobody_without_its_token(
    embedded_ray: RayRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(Unavailable) as caught:
        join_ray(gcs_address(embedded_ray.link.keeper_pid))
    assert "RAY_AUTH_TOKEN" in caught.value.hint


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "http://127.0.0.1:6379", "127.0.0.1:port", "127.0.0.1:0", "ray://"]
)
def test_a_malformed_address_is_invalid(address: str) -> None:
    with pytest.raises(Invalid, match="ray address"):
        join_ray(address)


def wait_until_dead(pids: list[int]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s and any(map(is_alive, pids)):
        time.sleep(0.02)
    assert_dead(pids)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def gcs_address(keeper_pid: int) -> str:
    """Where an embedded Ray's control store listens, from the raylet's own arguments."""
    words = [word for pid in descendants(keeper_pid) for word in command_of(pid).split()]
    return next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))


def token_of(keeper_pid: int) -> str:
    """What an embedded Ray asks of those who join; empty for a Ray too old to ask."""
    for pid in descendants(keeper_pid):
        if "gcs_server" in command_of(pid):
            pairs = (word.partition(b"=") for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
            return {name: value for name, _, value in pairs}.get(b"RAY_AUTH_TOKEN", b"").decode()
    raise AssertionError("expected a gcs_server below the keeper, found none")
