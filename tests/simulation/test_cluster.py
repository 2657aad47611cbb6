"""The model does what a body does with each effect, says so as evidence, and refuses what is stale or impossible."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Internal
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Slot, Step, WriteId
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.cluster import CHECKPOINT_BYTES, Cluster
from behemoth.simulation.timing import Timing
from behemoth.state.config import Cadence, HangFloors, RunConfig
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    CommitRef,
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
    Committed,
    Evidence,
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    Late,
    NodeJoined,
    NodeLost,
    ProvisionFailed,
    RestoreFailed,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    Tick,
    WorkerFailed,
)
from behemoth.state.fence import Fence

SECOND_US = 1_000_000
N0, N1, N2 = (NodeId(f"n{order}") for order in range(3))
CONFIG = RunConfig(
    run_uid=RunUid("run"),
    nodes=(N0, N1, N2),
    num_slots=2,
    ranks_per_node=2,
    total_steps=Step(20),
    cadence=Cadence(steps=5),
    keep_last=2,
    keep_every_steps=None,
    heartbeat_limit_us=3 * SECOND_US,
    hang_floors=HangFloors(start_us=1, restore_us=1, first_step_us=1, step_us=1, eval_us=1, save_us=1),
    settle_us=1,
    max_failures=3,
    node_wait_us=1,
    rejoin_us=0,
    save_limit_us=1,
)
W1 = WriteId("a1-1")


class World:
    """A cluster, the evidence it sent, and a short way to speak to it."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.sent: list[Evidence] = []
        self.agenda = Agenda()
        self.cluster = Cluster(config=CONFIG, agenda=self.agenda, timing=timing or Timing(), send=self.sent.append)
        self.cluster.begin_term(Epoch(1), do_agents_survive=True)

    def fence(self, attempt: int, epoch: int = 1) -> Fence:
        return Fence(run_uid=CONFIG.run_uid, epoch=Epoch(epoch), attempt=Attempt(attempt))

    def wait(self, seconds: float) -> list[Evidence]:
        """Everything sent meanwhile but Ticks."""
        begin = len(self.sent)
        self.agenda.advance_to(self.agenda.now_us + round(seconds * SECOND_US))
        return [evidence for evidence in self.sent[begin:] if not isinstance(evidence, Tick)]

    def join(self) -> None:
        for node in CONFIG.nodes:
            self.cluster.apply(Provision(fence=self.fence(0), node=node, incarnation=1))
        self.wait(2)

    def train(self, attempt: int = 1, restore: CommitRef | None = None) -> list[Evidence]:
        """Place and start; three seconds later the first step is completed."""
        if not self.cluster.slots:
            self.cluster.apply(Place(fence=self.fence(attempt - 1), holders=(N0, N1)))
        self.cluster.apply(Start(fence=self.fence(attempt), restore=restore, reason="test"))
        return self.wait(3.02)

    def save(self, step: int, *, is_last: bool = False) -> None:
        self.cluster.apply(Save(fence=self.fence(1), step=Step(step), write_id=W1, is_last=is_last))

    def step(self) -> int:
        return self.cluster.training.step_now()


@pytest.fixture
def world() -> World:
    world = World()
    world.join()
    return world


def test_a_provisioned_agent_joins_once_and_asking_twice_changes_nothing() -> None:
    world = World()
    for _ in range(2):
        world.cluster.apply(Provision(fence=world.fence(0), node=N0, incarnation=1))
    assert world.wait(9) == [NodeJoined(node=N0, incarnation=1, attempt=Attempt(0))]


def test_a_gang_comes_up_restores_and_makes_steps(world: World) -> None:
    told = world.train()
    assert told == [GangUp(attempt=Attempt(1)), GangRestored(attempt=Attempt(1), step=Step(0), num_from_memory=0)]
    assert world.step() == 1
    world.wait(4)
    assert world.step() == 5


def test_the_first_step_is_told_at_once_and_later_ones_along_a_line(world: World) -> None:
    world.train()
    first = world.sent[-1]
    assert isinstance(first, Tick)
    assert first.progress is not None
    assert (first.progress.step, first.progress.at_us) == (1, world.agenda.now_us)
    begin = len(world.sent)
    world.wait(12)
    ticks = [e.progress.step for e in world.sent[begin:] if isinstance(e, Tick) and e.progress]
    assert ticks == [11]


def test_a_gang_stands_at_its_last_step(world: World) -> None:
    world.train()
    world.wait(100)
    assert world.step() == CONFIG.total_steps


def test_a_save_is_armed_staged_written_and_committed(world: World) -> None:
    world.train()
    world.save(5)
    told = world.wait(6.2)
    assert told == [
        SaveArmed(attempt=Attempt(1), write_id=W1),
        SaveStaged(attempt=Attempt(1), write_id=W1),
        SaveWritten(attempt=Attempt(1), write_id=W1),
    ]
    world.cluster.apply(Commit(fence=world.fence(1), step=Step(5), write_id=W1))
    commit = CommitRef(step=Step(5), write_id=W1, size_bytes=CHECKPOINT_BYTES)
    assert world.wait(1) == [Committed(commit=commit)]
    assert world.cluster.store.newest() == commit


def test_a_save_whose_step_is_behind_the_ranks_was_passed(world: World) -> None:
    world.train()
    world.wait(4)
    world.save(3)
    assert world.wait(1) == [SavePassed(attempt=Attempt(1), write_id=W1, step=Step(5))]


def test_a_second_commit_of_a_step_fails_and_the_first_stays(world: World) -> None:
    world.cluster.store.written(Step(5), W1)
    world.cluster.apply(Commit(fence=world.fence(0), step=Step(5), write_id=W1))
    world.wait(1)
    world.cluster.store.written(Step(5), WriteId("a1-2"))
    world.cluster.apply(Commit(fence=world.fence(0), step=Step(5), write_id=WriteId("a1-2")))
    [failed] = world.wait(1)
    assert isinstance(failed, SaveFailed)
    assert world.cluster.store.commits[Step(5)].write_id == W1


def test_a_commit_without_receipts_fails(world: World) -> None:
    world.cluster.apply(Commit(fence=world.fence(0), step=Step(5), write_id=W1))
    assert world.wait(1) == [SaveFailed(write_id=W1, reason="receipts are missing")]


def test_ranks_of_a_last_save_wait_for_agree_then_end(world: World) -> None:
    world.train()
    world.save(4, is_last=True)
    assert world.wait(30) == [SaveArmed(attempt=Attempt(1), write_id=W1)]
    assert world.step() == 4
    world.cluster.apply(Agree(fence=world.fence(1), write_id=W1))
    assert [type(e) for e in world.wait(3)] == [SaveStaged, SaveWritten, GangFinished]


def test_ranks_go_on_when_a_last_save_is_given_up(world: World) -> None:
    world.train()
    world.save(4, is_last=True)
    world.wait(10)
    world.cluster.apply(Abort(fence=world.fence(1), write_id=W1, reason="test"))
    world.wait(3)
    assert world.step() == 7


def test_a_killed_worker_is_reported_and_the_gang_makes_no_step_after_it(world: World) -> None:
    world.train()
    world.cluster.training.fail_worker(N1, Rank(2), exit_code=None, signal=9)
    [failed] = world.wait(5)
    assert isinstance(failed, WorkerFailed)
    assert (failed.node, failed.rank, failed.signal) == (N1, 2, 9)
    assert world.step() == 1


def test_a_hung_gang_says_that_its_line_ended_and_nothing_else(world: World) -> None:
    world.train()
    world.wait(1)
    world.cluster.training.hang()
    assert world.wait(60) == []
    last = world.sent[-1]
    assert isinstance(last, Tick)
    assert last.progress is not None
    assert (last.progress.step, last.progress.next_report_by_us) == (2, None)


def test_a_lost_machine_is_reported_and_refuses_agents_until_it_is_repaired(world: World) -> None:
    world.cluster.machines.lose(N2, 10 * SECOND_US)
    assert world.wait(1) == [NodeLost(node=N2, incarnation=1, reason="connection closed")]
    world.cluster.apply(Provision(fence=world.fence(0), node=N2, incarnation=2))
    [refused] = world.wait(1)
    assert isinstance(refused, ProvisionFailed)
    world.wait(10)
    world.cluster.apply(Provision(fence=world.fence(0), node=N2, incarnation=3))
    assert world.wait(3) == [NodeJoined(node=N2, incarnation=3, attempt=Attempt(0))]


def test_a_patient_runtime_starts_the_agent_once_the_machine_is_back() -> None:
    world = World(Timing(refuse_us=None))
    world.join()
    world.cluster.machines.lose(N2, 10 * SECOND_US)
    world.wait(1)
    world.cluster.apply(Provision(fence=world.fence(0), node=N2, incarnation=2))
    assert world.wait(30) == [NodeJoined(node=N2, incarnation=2, attempt=Attempt(0))]


def test_a_frozen_agent_is_late_stops_the_line_and_goes_on_when_it_thaws(world: World) -> None:
    world.train()
    since_us = world.agenda.now_us
    world.cluster.machines.freeze(N1, 5 * SECOND_US)
    world.wait(2)
    assert world.cluster.look().late == (Late(node=N1, since_us=since_us),)
    assert world.step() == 1
    world.wait(5)
    assert world.cluster.look().late == ()
    assert world.step() == 3


def test_an_evicted_agent_ends_silently_and_breaks_the_gang_it_held(world: World) -> None:
    world.train()
    world.cluster.apply(Evict(fence=world.fence(1), node=N1, incarnation=1, reason="test"))
    assert world.wait(10) == []
    assert world.step() == 1


def test_a_gang_on_a_dead_holder_never_comes_up(world: World) -> None:
    world.cluster.machines.lose(N1, 5 * SECOND_US)
    world.wait(1)
    assert world.train() == []


def test_a_save_that_was_staged_outlives_a_restart_of_the_workers(world: World) -> None:
    world.train()
    world.save(2)
    world.wait(1.2)
    world.cluster.training.fail_worker(N0, Rank(0), exit_code=1, signal=None)
    told = world.train(attempt=2)
    assert SaveWritten(attempt=Attempt(1), write_id=W1) in told


def test_a_save_that_was_staged_dies_with_a_node_that_held_it(world: World) -> None:
    world.train()
    world.save(2)
    world.wait(1.2)
    world.cluster.machines.lose(N0, SECOND_US)
    assert [type(e) for e in world.wait(3)] == [SaveFailed, NodeLost]


def test_a_corrupt_commit_does_not_restore_and_a_rejected_one_is_not_found_again(world: World) -> None:
    world.cluster.store.written(Step(5), W1)
    world.cluster.apply(Commit(fence=world.fence(0), step=Step(5), write_id=W1))
    world.wait(1)
    [commit] = world.cluster.store.found()
    world.cluster.store.corrupt.add(W1)
    told = world.train(restore=commit)
    assert isinstance(told[-1], RestoreFailed)
    world.cluster.apply(Reject(fence=world.fence(1), commit=commit, reason="test"))
    assert world.cluster.store.found() == ()


def test_a_stopped_gang_is_gone(world: World) -> None:
    world.train()
    world.cluster.apply(Stop(fence=world.fence(1), reason="test"))
    assert world.wait(5) == [GangGone(attempt=Attempt(1))]


def test_effects_of_an_older_attempt_or_term_are_refused(world: World) -> None:
    world.train(attempt=2)
    assert not world.cluster.apply(Save(fence=world.fence(1), step=Step(9), write_id=W1))
    assert world.cluster.training.saves.tries == {}
    world.cluster.begin_term(Epoch(2), do_agents_survive=True)
    assert not world.cluster.apply(Stop(fence=world.fence(2), reason="zombie"))
    world.wait(1)
    assert world.step() == 2
    assert world.cluster.num_refused == 2


def test_effects_of_another_run_are_refused(world: World) -> None:
    fence = Fence(run_uid=RunUid("other"), epoch=Epoch(9), attempt=Attempt(9))
    assert not world.cluster.apply(Place(fence=fence, holders=(N0, N1)))


def test_nothing_is_applied_after_the_run_was_closed(world: World) -> None:
    world.cluster.apply(Close(fence=world.fence(0), outcome="failed", reason="test"))
    assert not world.cluster.apply(Provision(fence=world.fence(0), node=N0, incarnation=2))


def test_a_placement_with_one_node_in_two_slots_is_a_bug(world: World) -> None:
    with pytest.raises(Internal, match="n0 with two slots"):
        world.cluster.apply(Place(fence=world.fence(0), holders=(N0, N0)))


def test_a_spare_that_holds_a_slot_already_is_a_bug(world: World) -> None:
    world.train()
    with pytest.raises(Internal, match="expected spare n1 without a slot"):
        world.cluster.apply(Replace(fence=world.fence(1), slot=Slot(0), node=N0, spare=N1, reason="test"))


def test_a_start_before_any_placement_is_a_bug(world: World) -> None:
    with pytest.raises(Internal, match="expected a placement"):
        world.cluster.apply(Start(fence=world.fence(1), restore=None, reason="test"))


def test_agents_that_live_on_greet_the_next_coordinator_with_the_attempt_they_run(world: World) -> None:
    world.train()
    begin = len(world.sent)
    world.cluster.begin_term(Epoch(2), do_agents_survive=True)
    joined = [e for e in world.sent[begin:] if isinstance(e, NodeJoined)]
    assert NodeJoined(node=N0, incarnation=1, attempt=Attempt(1)) in joined
    assert NodeJoined(node=N2, incarnation=1, attempt=Attempt(0)) in joined


def test_agents_without_patience_are_gone_when_the_next_coordinator_comes(world: World) -> None:
    world.train()
    begin = len(world.sent)
    world.cluster.begin_term(Epoch(2), do_agents_survive=False)
    assert not [e for e in world.sent[begin:] if isinstance(e, NodeJoined)]
    world.wait(9)
    assert world.step() == 1
