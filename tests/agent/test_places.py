"""Where a restored state came from, told by the places that gave any of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from behemoth.agent.places import SnapshotPlace, Taken, Tier, take_from
from behemoth.base.errors import Corrupt, NotFound
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.gathering import Gathering, SnapshotSource
from behemoth.checkpoint.plan import RankPlan, plan_rank
from checkpoint.checkpoint_rig import arena_of
from checkpoint.other_memory import OtherMemory
from checkpoint.saved_checkpoint import small_layout

PLAN = plan_rank(small_layout(), Rank(0))
NUM = len(PLAN.spans)


def _itself(source: SnapshotSource) -> SnapshotSource:
    return source


def taken(*places: tuple[Tier, SnapshotSource], plan: RankPlan = PLAN) -> Taken:
    with arena_of(plan) as arena:
        gathering = Gathering(plan, arena, 0, write_id=WriteId("a1-2"), step=Step(7), threads=1)
        return take_from([SnapshotPlace(tier, partial(_itself, source)) for tier, source in places], gathering)


def test_a_state_that_one_kind_of_place_gave_came_from_there_and_one_of_two_kinds_from_several() -> None:
    whole = OtherMemory(PLAN)
    half = OtherMemory(PLAN, data=whole.data, lacks=range(1))
    assert taken(("disk", whole)).origin == "disk"
    assert taken(("peer", half), ("peer", whole)).origin == "peer"
    assert taken(("peer", half), ("disk", whole)).origin == "several"
    assert taken(("peer", OtherMemory(PLAN, lacks=range(NUM))), ("disk", whole)).origin == "disk"


def test_the_state_of_a_rank_that_holds_nothing_has_an_origin_too() -> None:
    nothing = replace(PLAN, spans=())
    assert taken(("peer", OtherMemory(nothing)), plan=nothing).origin == "memory"


@pytest.mark.parametrize(("is_promised", "missed"), [(True, ["gone"]), (False, [])])
def test_a_place_without_the_snapshot_is_worth_telling_where_it_should_have_had_it(
    is_promised: bool, missed: list[str]
) -> None:
    failed: list[object] = []

    def lost() -> SnapshotSource:
        raise NotFound("gone")

    def damaged() -> SnapshotSource:
        raise Corrupt("damaged")

    with arena_of(PLAN) as arena:
        gathering = Gathering(PLAN, arena, 0, write_id=WriteId("a1-2"), step=Step(7), threads=1)
        places = [
            SnapshotPlace("disk", lost, failed.append, is_promised=is_promised),
            SnapshotPlace("disk", damaged, failed.append, is_promised=False),
            SnapshotPlace("peer", lambda: OtherMemory(PLAN)),
            SnapshotPlace("peer", lost, failed.append),  # not asked any more
        ]
        found = take_from(places, gathering)
        assert gathering.is_whole
    assert found.missed == [*missed, "damaged"]
    assert [type(error) for error in failed] == [NotFound, Corrupt]
    assert found.received_bytes == {"disk": 0, "peer": sum(span.length for span in PLAN.spans)}
