"""A run on a Ray that somebody else started: three nodes, one of them lost. Real Ray, so this takes half a minute."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.fleet.tokens import Tokens
from behemoth.rayrt.host import named_nodes
from behemoth.rayrt.keeper import descendants
from fault.kill_stage import spec, staged, undisturbed
from rayrt.joined_ray import JoinedRay, joined_ray

STEPS = 300
TEXT = spec(steps=STEPS, every=50)


@pytest.fixture
def ray() -> Iterator[JoinedRay]:
    with joined_ray() as started:
        yield started


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


def test_a_joined_ray_loses_a_node_and_the_run_goes_on_without_telling_tokens(tmp_path: Path, ray: JoinedRay) -> None:
    digest = undisturbed(tmp_path / "undisturbed", TEXT)
    too_many = TEXT.replace("spares: 1", "spares: 9")
    assert too_many != TEXT
    with staged(tmp_path / "too-many", too_many, arguments=("--address", ray.address)) as stage:
        stage.start()
        assert stage.wait() == 2, stage.told()
        assert "expected 11 (2 and 9 spares), got 3" in stage.told()
    with staged(tmp_path / "joined", TEXT, arguments=("--address", ray.address)) as stage:
        stage.start()
        stage.until_event("Committed", 2)
        argvs = command_lines()
        lose_machine(ray.raylets[1])
        stage.finish()
        assert len(stage.events("Replaced", "NodeLost")) >= 1, stage.told()
        stage.expect_sound(digest)
        nodes = {str(event["node"]) for event in stage.events("NodeJoined")}
        tokens = Tokens((stage.directory / "secret").read_bytes())
        minted = [tokens.mint(node, incarnation) for node in nodes for incarnation in range(1, 9)]  # type: ignore[arg-type]
        assert not [token for token in minted if token in argvs]
        said = files_below(stage.folder, ray.session / "logs")
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
