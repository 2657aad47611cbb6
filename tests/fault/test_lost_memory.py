"""A node is lost with all its memory, in a whole run: its rank's state comes out of another node's memory, and the end
is that of a run that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

from fault.held_steps import copied_steps
from fault.kill_stage import KillStage, staged, undisturbed

SPEC = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: copies}}
spec:
  nodes: {{count: 4, gpus_per_node: 1, spares: 1}}
  mesh: {{dp: 4}}
  workload:
    entrypoint: behemoth.workloads.counter:main
    preload: [numpy]
    steps: 120
    args: {{step_ms: {step_ms}}}
  checkpoint: {{every: {{steps: 60}}, peer_copies: 1}}
"""


def node_of(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(one.partition(b"=")[2].decode() for one in environment if one.startswith(b"BEHEMOTH_NODE="))


def lose_a_node(stage: KillStage) -> None:
    """One that holds a slot, once there is a copy of everything, seconds before the next commit."""
    stage.until_event("Committed")
    stage.until(
        lambda: sum(bool(copied_steps(agent.pid)) for agent in stage.living("agent")) == 4, "a copy of every rank"
    )
    placed = str(stage.events("Placed")[0]["message"])
    victim = next(agent for agent in stage.living("agent") if f"{node_of(agent.pid)}," in placed)
    stage.kill(victim)


def test_a_lost_nodes_state_comes_from_a_peer_and_the_run_ends_the_same(tmp_path: Path) -> None:
    digest = undisturbed(tmp_path / "undisturbed", SPEC.format(step_ms=0))
    with staged(tmp_path / "struck", SPEC.format(step_ms=60)) as stage:
        stage.start()
        lose_a_node(stage)
        summary = stage.finish()
        stage.expect_sound(digest)
    (restore,) = summary["restores"]
    assert (restore["num_from_memory"], restore["num_from_peer"], restore["num_from_store"]) == (3, 1, 0)
    assert (restore["store_bytes"], restore["missed"]) == (0, "")
    assert restore["peer_bytes"] > 0
    (told,) = [event["message"] for event in stage.events("Restored") if event["attempt"] == 2]
    assert str(told).endswith("3 of 4 ranks from memory, 1 from a peer's memory")
