"""How the coordinator hears of nodes' own disks: each trouble once, whatever beats repeat."""

from __future__ import annotations

import msgspec

from behemoth.base.ids import Attempt, NodeId, Step
from behemoth.fleet.own_disks import OwnDisks
from behemoth.wire.reports import Beat, DiskState, Report

A, B = NodeId("a"), NodeId("b")
FULL, WORKS = DiskState(trouble="no-space", reason="it is full"), DiskState()
BEAT = Beat(
    attempt=Attempt(1),
    step=Step(2),
    furthest_step=Step(2),
    phase="step",
    phase_age_us=1,
    slowest_step_us=1,
    stall_us=0,
    rendezvous_port=4000,
)


def heard(*said: tuple[NodeId, DiskState | None]) -> list[tuple[NodeId, DiskState]]:
    told: list[tuple[NodeId, DiskState]] = []
    disks = OwnDisks(lambda node, one: told.append((node, one)))
    for node, one in said:
        disks.hear(node, one)
    return told


def test_a_trouble_is_told_once_and_its_end_once() -> None:
    assert heard((A, None), (A, FULL), (A, FULL), (A, WORKS), (A, WORKS)) == [(A, FULL), (A, WORKS)]


def test_a_disk_that_has_always_worked_is_no_news() -> None:
    assert heard((A, WORKS), (B, None), (A, WORKS)) == []


def test_other_words_for_the_same_trouble_are_no_news_and_another_trouble_is() -> None:
    fuller = DiskState(trouble="no-space", reason="less is free by now")
    failed = DiskState(trouble="failed", reason="it fails")
    assert heard((A, FULL), (A, fuller), (A, failed)) == [(A, FULL), (A, failed)]


def test_each_node_s_disk_counts_for_itself() -> None:
    assert heard((A, FULL), (B, FULL), (A, WORKS), (B, FULL)) == [(A, FULL), (B, FULL), (A, WORKS)]


def test_an_agent_that_was_replaced_and_says_nothing_yet_ends_no_trouble() -> None:
    assert heard((A, FULL), (A, None), (A, FULL), (A, None), (A, WORKS)) == [(A, FULL), (A, WORKS)]


def test_a_coordinator_that_knows_nothing_of_own_disks_understands_the_beat_that_tells_of_one() -> None:
    """It has neither the field nor its type."""
    fields = [(one.name, one.type, one.default) for one in msgspec.structs.fields(Beat) if not one.required]
    needed = [(one.name, one.type) for one in msgspec.structs.fields(Beat) if one.required]
    known = [one for one in fields if one[0] != "own_disk"]
    older = msgspec.defstruct("Beat", [*needed, *known], tag="Beat", kw_only=True)
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.structs.replace(BEAT, own_disk=FULL)), type=older)
    assert msgspec.structs.asdict(told) == {
        name: value for name, value in msgspec.structs.asdict(BEAT).items() if name != "own_disk"
    }


def test_a_beat_of_an_agent_that_knows_nothing_of_own_disks_says_nothing_of_one() -> None:
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(BEAT))
    assert "own_disk" not in body
    told = msgspec.msgpack.Decoder(Report).decode(msgspec.msgpack.encode(body))
    assert isinstance(told, Beat)
    assert told.own_disk is None


def test_a_kind_of_trouble_that_a_newer_agent_knows_is_told_too() -> None:
    newer = {
        "type": "Beat",
        **msgspec.to_builtins(BEAT),
        "own_disk": {"trouble": "too-hot", "reason": "90 C", "more": 1},
    }
    told = msgspec.msgpack.Decoder(Report).decode(msgspec.msgpack.encode(newer))
    assert isinstance(told, Beat)
    assert heard((A, told.own_disk)) == [(A, DiskState(trouble="too-hot", reason="90 C"))]
