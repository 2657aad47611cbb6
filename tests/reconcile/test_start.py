"""From an opened run to a training gang, and the phases that it passes."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Internal
from behemoth.base.ids import Attempt, Epoch, NodeId
from behemoth.reconcile.fold import fold
from behemoth.state.effect import Close, Place, Provision, Start
from behemoth.state.evidence import CommitsFound, GangUp, NodeJoined, NodeLost, ProvisionFailed, TermBegan, Tick
from reconcile.player import Player, S, ref, training


def test_every_node_is_ordered_and_the_first_that_join_form_the_gang() -> None:
    player = Player()
    player.begin()
    assert [effect.node for effect in player.effects if isinstance(effect, Provision)] == ["a", "b", "c"]
    player.join("c")
    assert player.phase == ("placing", "WaitingForNodes")
    player.join("b")
    assert player.one(Place).holders == ("b", "c")
    start = player.one(Start)
    assert (start.fence.attempt, start.restore) == (1, None)
    player.join("a")
    assert player.effects == ()
    assert player.phase == ("starting", "Starting")


def test_the_phases_follow_the_gang() -> None:
    player = Player()
    assert player.phase == ("pending", "WaitingForCoordinator")
    player.tell(TermBegan(epoch=Epoch(1)))
    assert player.phase == ("pending", "WaitingForStore")
    player.join("ab")
    assert not player.has(Start)
    player.tell(CommitsFound(commits=()))
    player.tell(GangUp(attempt=Attempt(1)))
    assert player.phase == ("restoring", "Restoring")
    player.train()
    assert player.phase == ("training", "Training")


def test_a_run_with_commits_restores_the_newest() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"), ref(20, "a1-7"))
    player.join("abc")
    assert player.one(Start).restore == ref(20, "a1-7")
    player.train(20)
    assert player.save.step == 30
    assert player.save.write_id == "a1-8"


def test_a_run_whose_last_step_is_committed_is_over_at_once() -> None:
    player = Player()
    player.begin(ref(100, "a1-1"))
    assert player.one(Close).outcome == "succeeded"


def test_a_journal_that_does_not_begin_with_its_run_is_refused() -> None:
    with pytest.raises(Internal, match="expected RunOpened"):
        fold(None, Tick(), 0)


def test_facts_of_unknown_nodes_and_old_agents_change_nothing() -> None:
    player = training()
    before = player.obs
    player.tell(
        NodeJoined(node=NodeId("zz"), incarnation=1, attempt=Attempt(0)),
        NodeJoined(node=NodeId("a"), incarnation=0, attempt=Attempt(0)),
        GangUp(attempt=Attempt(7)),
        after_us=0,
    )
    assert player.obs == before


def test_time_never_runs_backwards() -> None:
    player = training()
    assert fold(player.obs, Tick(), 5).now_us == player.now_us


@pytest.mark.parametrize("told", [ProvisionFailed, NodeLost])
def test_a_node_that_cannot_be_had_is_asked_for_less_and_less_often(told: type[ProvisionFailed | NodeLost]) -> None:
    player = Player()
    player.begin()
    waits = []
    for _ in range(5):
        node = player.obs.nodes[NodeId("a")]
        player.tell(told(node=NodeId("a"), incarnation=node.incarnation - 1, reason="late"), after_us=0)
        assert NodeId("a") not in player.obs.due
        player.tell(told(node=NodeId("a"), incarnation=node.incarnation, reason="full"), after_us=0)
        assert player.decision is not None
        due_us = player.obs.due[NodeId("a")]
        waits.append((due_us - player.now_us) // S)
        player.rest(due_us - player.now_us)
        assert player.one(Provision).incarnation == node.incarnation + 1
    assert waits == [1, 2, 4, 8, 16]


def test_a_gang_that_never_finds_its_nodes_fails_with_the_reason() -> None:
    player = Player()
    player.begin()
    player.join("a")
    player.rest(599 * S)
    close = player.one(Close)
    assert close.outcome == "failed"
    assert close.reason == "waited 600 s for nodes: 2 missing, 1 there"


def test_nodes_that_are_first_started_are_waited_for_as_long_as_a_start_may_take() -> None:
    player = Player(node_wait_us=0)
    player.begin()
    start_us = player.obs.config.hang_floors.start_us
    assert not [effect for effect in player.rest(start_us - 2 * S) if isinstance(effect, Close)]
    assert [effect.outcome for effect in player.rest(3 * S) if isinstance(effect, Close)] == ["failed"]
