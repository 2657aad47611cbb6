"""What holds of every decision, whatever it is about."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Internal
from behemoth.base.ids import NodeId
from behemoth.reconcile import decide as module
from behemoth.reconcile.decide import decide
from behemoth.state.effect import Effect, Provision
from behemoth.state.evidence import Asked
from behemoth.state.observation import Observation
from reconcile.player import Player, training


def test_rules_that_never_come_to_rest_are_told_with_what_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(obs: Observation) -> tuple[Effect, ...]:
        return (Provision(fence=obs.fence, node=NodeId("a"), incarnation=1),)

    monkeypatch.setattr(module, "_RULES", (restless,))
    eight = ", ".join(["Provision"] * 8)
    with pytest.raises(Internal, match=rf"expected an end within \d+ rounds, got {eight} again and again"):
        decide(training().obs)


def test_nothing_is_waited_for_before_the_first_term_and_after_the_end() -> None:
    player = Player()
    player.join("ab")
    player.rest(0, late="a", since_us=player.now_us)
    assert player.obs.late
    assert _wake_at_us(player) is None
    player.begin()
    assert player.obs.coming  # for whom somebody waits
    assert _wake_at_us(player) is not None
    player.tell(Asked(request="stop"))
    assert player.obs.outcome == "cancelled"
    assert _wake_at_us(player) is None


def _wake_at_us(player: Player) -> int | None:
    assert player.decision is not None
    return player.decision.wake_at_us
