"""Evidence and decisions as sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from behemoth.app.event_log import EventLog, read_events
from behemoth.app.events import Event, events_of
from behemoth.app.restore_book import RestoreBook
from behemoth.base.clock import ManualClock
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Step, WriteId
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.state.config import Cadence, HangFloors, RunConfig, WorkPhase
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import (
    CommitsFound,
    Committed,
    Decided,
    Evidence,
    GangRestored,
    GangUp,
    NodeJoined,
    Progress,
    RunOpened,
    TermBegan,
    Tick,
    WorkerFailed,
)
from behemoth.state.observation import Observation

FLOORS = HangFloors(start_us=1, restore_us=1, first_step_us=1, step_us=1, eval_us=1, save_us=1)
CONFIG = RunConfig(
    run_uid=RunUid("u"),
    nodes=(NodeId("a"), NodeId("b")),
    num_slots=1,
    ranks_per_node=2,
    total_steps=Step(10),
    cadence=Cadence(steps=5),
    keep_last=2,
    keep_every_steps=None,
    heartbeat_limit_us=10**9,
    hang_floors=FLOORS,
    settle_us=0,
    max_failures=3,
    node_wait_us=10**9,
    rejoin_us=0,
    save_limit_us=10**9,
)


def tick(*, step: int, phase: WorkPhase) -> Tick:
    progress = Progress(
        attempt=Attempt(1),
        step=Step(step),
        furthest_step=Step(step),
        at_us=900,
        phase=phase,
        phase_since_us=900,
        slowest_step_us=0,
        stall_us=0,
    )
    return Tick(progress=progress)


HISTORY: tuple[Evidence, ...] = (
    RunOpened(config=CONFIG),
    TermBegan(epoch=Epoch(1)),
    CommitsFound(commits=()),
    NodeJoined(node=NodeId("a"), incarnation=1, attempt=Attempt(0)),
    GangUp(attempt=Attempt(1)),
    tick(step=0, phase="restore"),
    GangRestored(attempt=Attempt(1), step=Step(0), num_from_memory=0),
    tick(step=1, phase="step"),
    tick(step=2, phase="step"),
    Committed(commit=CommitRef(step=Step(5), write_id=WriteId("a1-1"), size_bytes=1 << 20)),
    WorkerFailed(
        node=NodeId("a"), attempt=Attempt(1), rank=Rank(1), exit_code=None, signal=9, last_lines="one\nlast words\n"
    ),
)


def play(log: EventLog | None = None) -> list[Event]:
    """Folds the history as a loop would; the events of all of it."""
    observation: Observation | None = None
    events: list[Event] = []
    for evidence in HISTORY:
        for fact in (evidence, None):
            if fact is None:
                assert observation is not None
                fact = Decided(effects=decide(observation).effects)
                if not fact.effects:
                    continue
            before, observation = observation, fold(observation, fact, 1_000)
            events += events_of(fact, before, observation)
            if log is not None:
                log.witness(fact, before, observation)
    return events


def test_a_run_reads_as_a_story() -> None:
    assert [event.reason for event in play()] == [
        "RunOpened",
        "NodeJoined",
        "Placed",
        "Starting",
        "Restored",
        "Training",
        "Committed",
        "LastSave",
        "WorkerFailed",
        "SaveAborted",
        "Starting",
    ]


def test_a_failure_names_rank_node_signal_and_last_words() -> None:
    failure = next(event for event in play() if event.reason == "WorkerFailed")
    assert failure.message == "rank 1 on node a ended with signal 9: last words"
    assert (failure.level, failure.node, failure.rank) == ("warning", "a", 1)


def test_an_event_stands_at_the_step_that_a_commit_proves_though_reports_lag_behind() -> None:
    steps = {event.reason: event.step for event in play()}
    assert (steps["Training"], steps["Committed"], steps["WorkerFailed"]) == (1, 5, 5)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"num_from_memory": 4}, "4 of 4 ranks from memory"),
        ({"num_from_memory": 2}, "2 of 4 ranks from memory"),  # as told before anybody counted
        (
            {"num_from_memory": 3, "num_from_peer": 1, "peer_bytes": 9},
            "3 of 4 ranks from memory, 1 from a peer's memory",
        ),
        (
            {
                "num_from_memory": 2,
                "num_from_peer": 1,
                "store_bytes": 3 << 20,
                "missed": "node c: no snapshot is there",
            },
            "2 of 4 ranks from memory, 1 from a peer's memory, 1 from the store (3.0 MiB read): node c: no snapshot is "
            "there",
        ),
        (
            {"num_from_memory": 3, "num_from_several": 1, "store_bytes": 3 << 20, "missed": "gone"},
            "3 of 4 ranks from memory, 1 from several places, partly from the store (3.0 MiB read): gone",
        ),
        (
            {"num_from_memory": 1, "num_from_peer": 1, "num_from_disk": 2, "peer_bytes": 9, "disk_bytes": 18},
            "1 of 4 ranks from memory, 1 from a peer's memory, 2 from the node's own disk",
        ),
        (
            {"num_from_memory": 2, "num_from_disk": 1, "disk_bytes": 9, "store_bytes": 1 << 20, "missed": "no file"},
            "2 of 4 ranks from memory, 1 from the node's own disk, 1 from the store (1.0 MiB read): no file",
        ),
        (
            {"num_from_memory": 3, "num_from_several": 1, "peer_bytes": 9, "disk_bytes": 9},
            "3 of 4 ranks from memory, 1 from several places",
        ),
        (
            {"num_from_memory": 3, "num_from_several": 1, "disk_bytes": 9, "store_bytes": 3 << 20, "missed": "torn"},
            "3 of 4 ranks from memory, 1 from several places, partly from the store (3.0 MiB read): torn",
        ),
        (
            {"num_from_peer": 1, "num_from_memory": 0, "num_from_several": 1, "store_bytes": 3 << 20},
            "0 of 4 ranks from memory, 1 from a peer's memory, 1 from several places, 2 from the store (3.0 MiB read)",
        ),
        ({"num_from_memory": 3, "num_from_several": 1}, "3 of 4 ranks from memory, 1 from several places"),
    ],
)
def test_a_restore_tells_where_the_state_came_from_and_is_booked(told: dict[str, Any], expected: str) -> None:
    config = structs.replace(CONFIG, ranks_per_node=4)
    commit = CommitRef(step=Step(5), write_id=WriteId("a1-1"), size_bytes=1)
    book, messages = RestoreBook(), list[str]()
    observation: Observation | None = None
    fact: Evidence | Decided | None
    for fact in (
        RunOpened(config=config),
        TermBegan(epoch=Epoch(1)),
        CommitsFound(commits=(commit,)),
        NodeJoined(node=NodeId("a"), incarnation=1, attempt=Attempt(0)),
        None,
        None,
        GangRestored(attempt=Attempt(1), step=Step(5), **told),
        GangRestored(attempt=Attempt(1), step=Step(5), **told),
    ):
        if fact is None:
            assert observation is not None
            fact = Decided(effects=decide(observation).effects)
        before, observation = observation, fold(observation, fact, 1_000)
        messages += [event.message for event in events_of(fact, before, observation) if event.reason == "Restored"]
        book.witness(fact, before, observation)
    assert messages[0] == f"attempt 1 stands at step 5, {expected}"
    (row,) = book.rows
    assert (row.step, row.num_from_memory, row.num_from_peer, row.num_from_several) == (
        5,
        told["num_from_memory"],
        told.get("num_from_peer", 0),
        told.get("num_from_several", 0),
    )
    assert (row.num_from_disk, row.disk_bytes) == (told.get("num_from_disk", 0), told.get("disk_bytes", 0))
    nearer = row.num_from_memory + row.num_from_peer + row.num_from_disk + row.num_from_several
    assert row.num_from_store == 4 - nearer
    assert (row.store_bytes, row.missed) == (told.get("store_bytes", 0), told.get("missed", ""))


def test_events_are_written_told_and_read_back(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", clock=ManualClock(now_us=5), listener=heard.append)
    log.open()
    log.warn("Drill", "drill: before anything")
    events = play(log)
    log.close()
    assert heard[1:] == events
    assert heard[0].at_us == 5
    assert read_events(tmp_path / "events.jsonl") == heard


def test_lines_that_a_crash_cut_off_or_a_disk_spoilt_are_left_out_and_do_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"at_us":1,"level":"\xff"}\n{"at_us":1,"lev')
    log = EventLog(path, clock=ManualClock(), listener=lambda _: None)
    log.open()
    events = play(log)
    log.close()
    assert read_events(path) == events


def test_events_that_the_disk_does_not_take_are_heard_all_the_same() -> None:
    heard: list[Event] = []
    log = EventLog(Path("/dev/full"), clock=ManualClock(now_us=1), listener=heard.append)
    log.open()
    play(log)
    log.close()
    assert heard
