"""When drills strike. What they inflict is shown on real runs, in tests/fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.test_events import HISTORY, tick
from behemoth.app.drills import Drills
from behemoth.base.errors import Corrupt
from behemoth.base.ids import Attempt, NodeId, RunUid
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.verify import verify
from behemoth.ports import SavesTo
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.spec.drill import Fault, parse_fault
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Decided, Evidence, NodeJoined
from behemoth.state.observation import Observation
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout

TRAINING = HISTORY[:9]
"""Node a holds the only slot, step 2 is completed, node b has not joined."""
SPARE = NodeJoined(node=NodeId("b"), incarnation=1, attempt=Attempt(0))
NOBODY = "expected a live agent on this machine, got none"


class Scene:
    """A run that no process belongs to: a strike is announced, and then finds nothing to kill."""

    def __init__(self, ledger: Path, *faults: Fault, store: SavesTo | None = None) -> None:
        self.told: list[tuple[str, NodeId | None]] = []
        self.drills = Drills(
            faults,
            run_uid=RunUid("nobody's"),
            store=store if store is not None else MemoryStore(),
            ledger=ledger,
            announce=lambda sentence, node: self.told.append((sentence, node)),
        )
        self.drills.open()
        self._observation: Observation | None = None

    def play(self, *history: Evidence) -> None:
        for evidence in history:
            self._fold(evidence)
            assert self._observation is not None
            effects = decide(self._observation).effects
            if effects:
                self._fold(Decided(effects=effects))

    def _fold(self, evidence: Evidence) -> None:
        before, self._observation = self._observation, fold(self._observation, evidence, 1_000)
        self.drills.witness(evidence, before, self._observation)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "drills.jsonl"


def test_a_fault_strikes_once_at_its_step_and_not_again_when_the_run_is_resumed(ledger: Path) -> None:
    for expected in (1, 0):
        scene = Scene(ledger, parse_fault("lose node 0 at step 2"))
        scene.play(*TRAINING[:-1])
        assert scene.told == []
        scene.play(TRAINING[-1], tick(step=3, phase="step"))
        scene.drills.close()
        assert scene.told.count(("lose node 0 at step 2", NodeId("a"))) == expected
        assert any(NOBODY in sentence for sentence, _ in scene.told) == bool(expected)


def test_a_node_that_has_not_joined_yet_is_struck_once_it_has(ledger: Path) -> None:
    scene = Scene(ledger, parse_fault("lose node 1 at step 2"))
    scene.play(*TRAINING, tick(step=3, phase="step"))
    assert not ledger.exists()
    scene.play(SPARE, tick(step=4, phase="step"))
    scene.drills.close()
    assert scene.told[0] == ("lose node 1 at step 2", NodeId("b"))


def test_a_fault_that_found_no_occasion_is_told_and_strikes_when_the_run_is_resumed(ledger: Path) -> None:
    scene = Scene(ledger, parse_fault("lose node 1 at step 2"))
    scene.play(*TRAINING)
    scene.drills.close()
    assert [(sentence.split(":")[1], node) for sentence, node in scene.told] == [(" has not struck", None)]
    scene = Scene(ledger, parse_fault("lose node 1 at step 2"))
    scene.play(*TRAINING[:4], SPARE, *TRAINING[4:])
    scene.drills.close()
    assert scene.told[0] == ("lose node 1 at step 2", NodeId("b"))


def test_a_line_of_the_ledger_that_was_cut_off_is_no_strike(tmp_path: Path) -> None:
    ledger = tmp_path / "drills.jsonl"
    ledger.write_bytes(b'{"format":1,"fault":"kill rank 0 at step 9"}\n{"format":1,"fau')
    scene = Scene(ledger, parse_fault("kill rank 0 at step 9"), parse_fault("kill rank 0 at step 2"))
    assert ledger.read_bytes().count(b"\n") == 1
    scene.play(*TRAINING)
    scene.drills.close()
    assert ledger.read_bytes().count(b"\n") == 2
    assert [sentence for sentence, _ in scene.told][:1] == ["kill rank 0 at step 2"]


@pytest.mark.parametrize("line", [b"rubbish", b'{"format":1}', b"[]", b"\xff", b""])
def test_a_line_of_the_ledger_that_is_rubbish_is_named(ledger: Path, line: bytes) -> None:
    ledger.write_bytes(b'{"format":1,"fault":"kill rank 0 at step 9"}\n' + line + b"\n")
    with pytest.raises(Corrupt, match=r"drills.jsonl, line 2: expected a fault that has struck, got b"):
        Scene(ledger, parse_fault("kill rank 0 at step 9"))


@pytest.mark.parametrize("kind", [MemoryStore, MemoryBucket])
def test_one_bit_of_the_newest_checkpoint_is_flipped_whatever_the_store_takes(
    ledger: Path, kind: type[MemoryStore | MemoryBucket]
) -> None:
    store = kind()
    for step in (1, 2):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    scene = Scene(ledger, parse_fault("corrupt newest checkpoint at step 2"), store=store)
    scene.play(*TRAINING)
    scene.drills.close()
    older, newest = (one for one in commits(store) if isinstance(one, CommitRef))
    assert verify(store, older, threads=1, deep=True).is_intact
    assert len(verify(store, newest, threads=1, deep=True).problems) == 1


def test_a_checkpoint_without_objects_is_told_and_not_corrupted(ledger: Path) -> None:
    store = MemoryStore()
    save(store, small_layout(), step=2, write_id="a1-2")
    store.delete([info.key for info in store.list("steps/")])
    scene = Scene(ledger, parse_fault("corrupt newest checkpoint at step 2"), store=store)
    scene.play(*TRAINING)
    scene.drills.close()
    assert "did not strike: checkpoint of step 2: expected objects to flip a bit of, got none" in scene.told[-1][0]
