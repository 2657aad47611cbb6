"""What is over has no say: facts of replaced attempts, and effects under another fence, change nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Slot, Step, WriteId
from behemoth.reconcile.fold import after_effects, fold
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    Delete,
    Effect,
    Evict,
    Place,
    Provision,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import (
    Evidence,
    GangFinished,
    GangGone,
    GangMismatched,
    GangRestored,
    GangUp,
    Progress,
    RestoreFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    Tick,
    WorkerFailed,
)
from behemoth.state.fence import Fence
from behemoth.state.observation import Observation
from reconcile.player import Player, S, ref, training

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
OLD = Attempt(1)


def second_attempt() -> Player:
    """Attempt 1 came to step 14 and was replaced by attempt 2, which restores step 10."""
    player = training()
    player.commit()
    player.reach(14)
    player.fail(signal=9)
    assert player.obs.attempt == 2
    return player


def starting() -> Player:
    return second_attempt()


def restoring() -> Player:
    player = second_attempt()
    player.tell(GangUp(attempt=Attempt(2)))
    return player


def training_on() -> Player:
    player = restoring()
    player.tell(GangRestored(attempt=Attempt(2), step=Step(10), num_from_memory=0))
    player.reach(11)
    return player


def progress_of(attempt: int, step: int) -> Tick:
    point = Progress(
        attempt=Attempt(attempt),
        step=Step(step),
        furthest_step=Step(step),
        at_us=20 * S,
        phase="step",
        phase_since_us=20 * S,
        slowest_step_us=S,
        stall_us=0,
    )
    return Tick(progress=point)


OLD_FACTS: tuple[Evidence, ...] = (
    GangUp(attempt=OLD),
    GangRestored(attempt=OLD, step=Step(0), num_from_memory=2),
    progress_of(OLD, 14),
    GangMismatched(attempt=OLD, node=A, reason="other arrays"),
    GangGone(attempt=OLD),
    GangFinished(attempt=OLD),
    WorkerFailed(node=A, attempt=OLD, rank=Rank(0), exit_code=1, signal=None, last_lines="late"),
    RestoreFailed(attempt=OLD, node=A, write_id=WriteId("a1-1"), reason="no answer", is_corrupt=False),
    SavePassed(attempt=OLD, write_id=WriteId("a1-1"), step=Step(14)),
    SaveStaged(attempt=OLD, write_id=WriteId("a1-1")),
    SaveWritten(attempt=OLD, write_id=WriteId("a1-2")),
)


@pytest.mark.parametrize("fact", OLD_FACTS, ids=lambda fact: type(fact).__name__)
@pytest.mark.parametrize("state", [starting, restoring, training_on])
def test_a_fact_of_a_replaced_attempt_changes_nothing(state: Callable[[], Player], fact: Evidence) -> None:
    obs = state().obs
    assert fold(obs, fact, obs.now_us) == obs


def test_a_save_of_a_replaced_attempt_says_nothing_of_how_far_its_successor_is() -> None:
    player = training()
    player.reach(9)
    player.tell(SaveStaged(attempt=OLD, write_id=player.save.write_id))
    player.fail(signal=9)
    player.train(0)
    player.reach(1)
    player.tell(SaveWritten(attempt=OLD, write_id=player.save.write_id))
    assert player.save.state in ("written", "committing")
    assert player.obs.progress is not None
    assert player.obs.progress.furthest_step == 1


def of_the_former_term(fence: Fence) -> Fence:
    return msgspec.structs.replace(fence, epoch=Epoch(fence.epoch - 1))


def of_a_later_term(fence: Fence) -> Fence:
    return msgspec.structs.replace(fence, epoch=Epoch(fence.epoch + 1))


def of_an_earlier_attempt(fence: Fence) -> Fence:
    return msgspec.structs.replace(fence, attempt=Attempt(fence.attempt - 1))


def of_another_run(fence: Fence) -> Fence:
    return msgspec.structs.replace(fence, run_uid=RunUid("other"))


def effects_of(obs: Observation) -> tuple[Effect, ...]:
    """Each would change `obs`."""
    assert obs.save is not None
    fence, write_id = obs.fence, obs.save.write_id
    following = msgspec.structs.replace(fence, attempt=Attempt(fence.attempt + 1))
    return (
        Replace(fence=fence, slot=Slot(0), node=A, spare=C, reason="test"),
        Start(fence=following, restore=None, reason="test"),
        Stop(fence=fence, reason="test"),
        Abort(fence=fence, write_id=write_id, reason="test"),
        Reject(fence=fence, commit=obs.commits[0], reason="test"),
        Close(fence=fence, outcome="failed", reason="test"),
    )


@pytest.mark.parametrize(
    "under",
    [of_the_former_term, of_a_later_term, of_an_earlier_attempt, of_another_run],
    ids=lambda change: change.__name__,
)
def test_effects_under_another_fence_change_nothing(under: Callable[[Fence], Fence]) -> None:
    obs = training_on().obs
    for effect in effects_of(obs):
        assert after_effects(obs, (effect,)) != obs, f"{effect} should do something"
        stale = msgspec.structs.replace(effect, fence=under(obs.fence))
        assert after_effects(obs, (stale,)) == obs, f"{stale} is not of this start"


def test_what_was_decided_before_a_start_is_refused_after_it_although_it_stands_in_one_list() -> None:
    obs = training_on().obs
    following = msgspec.structs.replace(obs.fence, attempt=Attempt(obs.attempt + 1))
    started = after_effects(obs, (Start(fence=following, restore=None, reason="test"),))
    assert after_effects(started, (Stop(fence=obs.fence, reason="late"),)) == started


@pytest.mark.parametrize(
    ("slot", "node", "spare"),
    [(Slot(0), B, C), (Slot(1), A, C), (Slot(0), A, B), (Slot(0), C, C), (Slot(7), A, C), (Slot(0), A, NodeId("x"))],
)
def test_a_slot_is_only_taken_from_its_holder_and_only_given_to_a_spare(
    slot: Slot, node: NodeId, spare: NodeId
) -> None:
    obs = training_on().obs
    assert dict(obs.holders) == {Slot(0): A, Slot(1): B}
    effect = Replace(fence=obs.fence, slot=slot, node=node, spare=spare, reason="test")
    assert after_effects(obs, (effect,)) == obs


def test_an_agent_is_evicted_before_its_slot_is_given_away_and_the_gang_is_started_last() -> None:
    player = training()
    effects = player.lose("a")
    kinds = [type(effect) for effect in effects if isinstance(effect, Evict | Replace | Start)]
    assert kinds == [Evict, Replace, Start]


@pytest.mark.parametrize(
    "effect",
    [
        lambda fence: Provision(fence=fence, node=A, incarnation=2),
        lambda fence: Evict(fence=fence, node=A, incarnation=1, reason="nobody owes it"),
        lambda fence: Place(fence=fence, holders=(B, C)),
        lambda fence: Save(fence=fence, step=Step(90), write_id=WriteId("a2-99"), is_last=False),
        lambda fence: Agree(fence=fence, write_id=WriteId("a2-99")),
        lambda fence: Commit(fence=fence, step=Step(90), write_id=WriteId("a2-99")),
        lambda fence: Abort(fence=fence, write_id=WriteId("a2-99"), reason="test"),
        lambda fence: Delete(fence=fence, commits=(ref(10, "a1-1"),)),
    ],
    ids=["provision", "evict", "place", "save", "agree", "commit", "abort", "delete"],
)
def test_an_effect_that_nothing_calls_for_changes_nothing(effect: Callable[[Fence], Effect]) -> None:
    obs = training_on().obs
    assert after_effects(obs, (effect(obs.fence),)) == obs


def test_a_run_is_closed_once() -> None:
    obs = training_on().obs
    closed = after_effects(obs, (Close(fence=obs.fence, outcome="suspended", reason="as asked"),))
    assert after_effects(closed, (Close(fence=obs.fence, outcome="failed", reason="late"),)) == closed
