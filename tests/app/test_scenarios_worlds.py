"""Worlds of every shape, and more nodes lost at once than there are spares: the run goes on and ends the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault.kill_stage import KillStage, staged, undisturbed

SPEC = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: worlds}}
spec:
  nodes: {{count: {nodes}, gpus_per_node: {gpus}, spares: {spares}}}
  mesh: {{{mesh}}}
  workload: {{entrypoint: "behemoth.workloads.counter:main", preload: [numpy], steps: {steps}, args: {{step_ms: 10}}}}
  checkpoint: {{every: {{steps: 10}}}}
"""
MOE = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: moe}}
spec:
  model: {{ref: tiny-moe}}
  nodes: {{count: {nodes}, gpus_per_node: 2}}
  mesh: {{{mesh}}}
  workload:
    entrypoint: behemoth.workloads.tiny_moe:main
    preload: [torch, torch._dynamo, behemoth.workloads.tiny_moe]
    steps: 12
  checkpoint: {{every: {{steps: 5}}}}
"""
PROCESSES = ("--runtime", "process")


def world(*, nodes: int, gpus: int = 1, spares: int = 0, mesh: str = "", steps: int = 300) -> str:
    mesh = mesh or f"dp: {nodes * gpus}"
    return SPEC.format(nodes=nodes, gpus=gpus, spares=spares, mesh=mesh, steps=steps)


def expect_same_end(folder: Path, text: str, *drills: str) -> KillStage:
    digest = undisturbed(folder / "undisturbed", text)
    arguments = [*PROCESSES, *(word for drill in drills for word in ("--drill", drill))]
    with staged(folder / "struck", text, arguments=arguments) as stage:
        stage.start()
        stage.finish()
        stage.expect_sound(digest)
    return stage


def lost(stage: KillStage) -> set[object]:
    return {event["node"] for event in stage.events("NodeLost")}


def struck(stage: KillStage) -> set[object]:
    return {event["node"] for event in stage.events("Drill")}


@pytest.mark.parametrize(
    ("nodes", "gpus", "mesh"),
    [
        pytest.param(1, 1, "", marks=pytest.mark.longer),
        pytest.param(3, 1, "", marks=pytest.mark.longer),
        (1, 4, "dp: 4, ep: 4"),
        pytest.param(2, 2, "dp: 4, ep: 2, edp: 2", marks=pytest.mark.longer),
    ],
)
def test_a_killed_rank_is_survived_in_any_world(tmp_path: Path, nodes: int, gpus: int, mesh: str) -> None:
    text = world(nodes=nodes, gpus=gpus, mesh=mesh)
    stage = expect_same_end(tmp_path, text, f"kill rank {nodes * gpus - 1} at step 25")
    assert len(stage.events("WorkerFailed")) >= 1


@pytest.mark.longer
def test_a_lost_node_without_any_spare_is_started_again(tmp_path: Path) -> None:
    stage = expect_same_end(tmp_path, world(nodes=2), "lose node 1 at step 25")
    assert lost(stage) == struck(stage)
    assert len(stage.events("NodeJoined")) == 3


def test_all_nodes_lost_at_once_are_started_again(tmp_path: Path) -> None:
    stage = expect_same_end(tmp_path, world(nodes=2, spares=1), *(f"lose node {node} at step 25" for node in range(3)))
    assert lost(stage) == struck(stage) >= {"node-0", "node-1"}
    assert len(stage.events("Drill")) == 3


@pytest.mark.longer
def test_two_nodes_lost_at_once_with_one_spare_are_survived(tmp_path: Path) -> None:
    stage = expect_same_end(tmp_path, world(nodes=3, spares=1), "lose node 0 at step 25", "lose node 2 at step 25")
    assert len(struck(stage)) == 2
    assert struck(stage) <= lost(stage)


@pytest.mark.longer
@pytest.mark.parametrize(("nodes", "mesh"), [(1, "dp: 2, ep: 1, edp: 2"), (2, "dp: 4, ep: 4")])
def test_the_reference_model_recovers_on_other_meshes(tmp_path: Path, nodes: int, mesh: str) -> None:
    stage = expect_same_end(tmp_path, MOE.format(nodes=nodes, mesh=mesh), "kill rank 1 at step 8")
    assert stage.events("WorkerFailed")
