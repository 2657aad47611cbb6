"""A run on a Ray that somebody else started: three nodes, one of them lost. Real Ray, so this takes half a minute."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.fleet.tokens import Tokens
from behemoth.rayrt.host import named_nodes
from behemoth.rayrt.keeper import descendants
from fault.kill_stage import spec, staged, undisturbed

CLUSTER = Path(__file__).with_name("three_node_ray.py")
LIMIT_S = 60.0
STEPS = 300
TEXT = spec(steps=STEPS, every=50)


@pytest.fixture
def ray() -> Iterator[dict[str, object]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told: dict[str, object] = json.loads(next(line for line in process.stdout if line.startswith("{")))
        yield told
        process.stdin.close()
        process.wait(LIMIT_S)
    shutil.rmtree(str(told["session"]), ignore_errors=True)


def command_lines() -> str:
    """Of every process of this machine that may be read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def lose_machine(raylet: int) -> None:
    """A raylet alone would leave its node at work until Ray misses it after some ten seconds."""
    for pid in [raylet, *descendants(raylet)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def files_below(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "secret":
                yield path, path.read_bytes()


def test_a_joined_ray_loses_a_node_and_the_run_goes_on_without_telling_tokens(
    tmp_path: Path, ray: dict[str, object]
) -> None:
    digest = undisturbed(tmp_path / "undisturbed", TEXT)
    raylets, address = ray["raylets"], str(ray["address"])
    assert isinstance(raylets, list)
    too_many = TEXT.replace("spares: 1", "spares: 9")
    assert too_many != TEXT
    with staged(tmp_path / "too-many", too_many, arguments=("--address", address)) as stage:
        stage.start()
        assert stage.wait(LIMIT_S) == 2, stage.told()
        assert "expected 11 (2 and 9 spares), got 3" in stage.told()
    with staged(tmp_path / "joined", TEXT, arguments=("--address", address)) as stage:
        stage.start()
        stage.until_event("Committed", 2, LIMIT_S)
        argvs = command_lines()
        lose_machine(raylets[1])
        stage.finish(LIMIT_S)
        assert len(stage.events("Replaced", "NodeLost")) >= 1, stage.told()
        stage.expect_sound(digest, gone_limit_s=20.0)
        nodes = {str(event["node"]) for event in stage.events("NodeJoined")}
        tokens = Tokens((stage.directory / "secret").read_bytes())
        minted = [tokens.mint(node, incarnation) for node in nodes for incarnation in range(1, 9)]  # type: ignore[arg-type]
        assert not [token for token in minted if token in argvs]
        said = files_below(stage.folder, Path(str(ray["session"])) / "logs")
        assert not [path for path, text in said if any(token.encode() in text for token in minted)]


def test_a_node_is_called_after_its_host_so_that_a_restarted_ray_has_the_same_nodes() -> None:
    first = named_nodes({"1a": "east", "2b": "west"}, {})
    assert first == {"east": "1a", "west": "2b"}
    assert named_nodes({"9f": "east", "8e": "west"}, first) == {"east": "9f", "west": "8e"}


def test_several_nodes_of_one_host_are_numbered_and_keep_their_names() -> None:
    first = named_nodes({"1a": "east", "2b": "east", "3c": "east"}, {})
    assert first == {"east": "1a", "east-2": "2b", "east-3": "3c"}
    assert named_nodes({"0z": "east", "2b": "east", "3c": "east"}, first) == {
        "east": "0z",
        "east-2": "2b",
        "east-3": "3c",
    }
    assert named_nodes({"2b": "east"}, first) == {"east-2": "2b"}
