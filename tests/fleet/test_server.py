"""The coordinator's server over real connections on the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from behemoth.base.clock import ManualClock
from behemoth.base.errors import Unavailable
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Step, WriteId
from behemoth.fleet import connections, link
from behemoth.fleet.server import Fleet
from behemoth.fleet.settings import FleetSettings
from behemoth.fleet.tokens import Tokens
from behemoth.state.config import HangFloors
from behemoth.state.evidence import Evidence, GangUp, NodeJoined, NodeLost, Tick, WorkerFailed
from behemoth.state.fence import Fence
from behemoth.wire import frames
from behemoth.wire.commands import Command, Leave, Rejected, RestoreFrom, SaveAt, StartGang, StopGang, Welcome
from behemoth.wire.reports import Beat, Hello, RanksUp, WorkerEnded
from behemoth.wire.setup import EntrypointWork, LocalDisk, Setup

RUN = RunUid("run")
A, B = NodeId("a"), NodeId("b")
FLOORS = HangFloors(start_us=1, restore_us=1, first_step_us=1, step_us=1, eval_us=1, save_us=1)
SETUP = Setup(
    work=EntrypointWork(entrypoint="m:f", preload=()),
    args={},
    environment={"KEY": "value"},
    total_steps=Step(10),
    mesh={"dp": 2},
    ranks_per_node=1,
    store_url="/nowhere",
    run_name="run",
    log_dir="/nowhere",
    io_threads=1,
    hang_floors=FLOORS,
    coordinator_grace_us=0,
    max_log_bytes=1,
)
WAIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""


@dataclass
class FakeAgent:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, message: object) -> None:
        self.writer.write(frames.encode_frame(message))

    async def hear(self) -> Command:
        async with asyncio.timeout(WAIT_S):
            body = await frames.read_frame(self.reader)
        command: Command = msgspec.msgpack.Decoder(Command).decode(body)
        return command


@dataclass
class Scene:
    fleet: Fleet
    port: int
    clock: ManualClock
    told: asyncio.Queue[Evidence]
    agents: list[FakeAgent] = field(default_factory=list)

    async def next(self) -> Evidence:
        async with asyncio.timeout(WAIT_S):
            return await self.told.get()


def hello(node: NodeId, token: str, **changes: object) -> Hello:
    said = Hello(
        major=frames.PROTOCOL_MAJOR,
        minor=0,
        run_uid=RUN,
        node=node,
        incarnation=1,
        token=token,
        host="127.0.0.1",
        rendezvous_port=4000,
        attempt=Attempt(0),
    )
    return msgspec.structs.replace(said, **changes)


def scene_test(work: Callable[[Scene], Awaitable[None]], *, reconnect_us: int = 0, setup: Setup = SETUP) -> None:
    async def play() -> None:
        clock = ManualClock(now_us=1_000_000)
        told: asyncio.Queue[Evidence] = asyncio.Queue()
        settings = FleetSettings(
            run_uid=RUN,
            epoch=Epoch(3),
            setup=setup,
            beat_interval_us=100_000,
            tick_interval_us=10_000,
            reconnect_us=reconnect_us,
        )
        fleet = Fleet(settings, tokens=Tokens(b"s" * 32), clock=clock, sink=told.put_nowait)
        scene = Scene(fleet, await fleet.listen("127.0.0.1", 0), clock, told)
        try:
            await work(scene)
        finally:
            await fleet.close("the test is over")
            for agent in scene.agents:
                agent.writer.close()
                await asyncio.wait([asyncio.create_task(agent.writer.wait_closed())], timeout=WAIT_S)

    asyncio.run(play())


async def connect(scene: Scene) -> FakeAgent:
    agent = FakeAgent(*await asyncio.open_connection("127.0.0.1", scene.port))
    scene.agents.append(agent)
    return agent


async def join(scene: Scene, node: NodeId, **changes: object) -> FakeAgent:
    token = scene.fleet.expect(node, 1)
    agent = await connect(scene)
    agent.say(hello(node, token, **changes))
    assert isinstance(await agent.hear(), Welcome)
    assert await scene.next() == NodeJoined(node=node, incarnation=1, attempt=Attempt(0))
    return agent


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": "0" * 64}, "bad-token"),
        ({"token": "é"}, "bad-token"),
        ({"run_uid": RunUid("other")}, "other-run"),
        ({"incarnation": 2}, "bad-token"),
        ({"major": 99}, "protocol-version"),
    ],
)
def test_an_agent_without_the_right_credentials_is_rejected(changes: dict[str, object], code: str) -> None:
    async def work(scene: Scene) -> None:
        token = scene.fleet.expect(A, 1)
        agent = await connect(scene)
        agent.say(msgspec.structs.replace(hello(A, token), **changes))
        answer = await agent.hear()
        assert isinstance(answer, Rejected)
        assert answer.code == code
        assert scene.fleet.connected() == {}

    scene_test(work)


def test_an_expelled_incarnation_is_told_to_leave_and_never_admitted_again() -> None:
    async def work(scene: Scene) -> None:
        token = scene.fleet.expect(A, 1)
        agent = await join(scene, A)
        scene.fleet.expel(A, 1, "silent")
        assert isinstance(await agent.hear(), Leave)
        again = await connect(scene)
        again.say(hello(A, token))
        answer = await again.hear()
        assert isinstance(answer, Rejected)
        assert answer.code == "stale-incarnation"

    scene_test(work)


def test_a_peer_that_speaks_something_else_is_cut_off() -> None:
    async def work(scene: Scene) -> None:
        agent = await connect(scene)
        agent.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert await agent.reader.read() == b""

    scene_test(work)


@pytest.mark.parametrize("length", [frames.MAX_HELLO_BYTES + 1, frames.MAX_FRAME_BYTES])
def test_a_peer_that_has_not_shown_its_token_may_not_announce_a_long_frame(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 10 * WAIT_S)

    async def work(scene: Scene) -> None:
        agent = await connect(scene)
        agent.writer.write(length.to_bytes(frames.LENGTH_BYTES, "little"))
        async with asyncio.timeout(WAIT_S):
            assert await agent.reader.read() == b""

    scene_test(work)


def test_a_hello_of_the_greatest_length_is_heard_and_a_member_may_say_more() -> None:
    async def work(scene: Scene) -> None:
        token = scene.fleet.expect(A, 1)
        spare_bytes = frames.MAX_HELLO_BYTES + frames.LENGTH_BYTES - len(frames.encode_frame(hello(A, token)))
        agent = await connect(scene)
        said = frames.encode_frame(hello(A, token, host="h" * (spare_bytes + len("127.0.0.1") - 2)))
        assert len(said) == frames.MAX_HELLO_BYTES + frames.LENGTH_BYTES
        agent.writer.write(said)
        assert isinstance(await agent.hear(), Welcome)
        assert isinstance(await scene.next(), NodeJoined)
        agent.say(WorkerEnded(attempt=Attempt(1), rank=Rank(0), signal=9, last_lines="x" * frames.MAX_HELLO_BYTES))
        assert isinstance(await scene.next(), WorkerFailed)

    scene_test(work)


@pytest.mark.parametrize("said", [b"", (40).to_bytes(frames.LENGTH_BYTES, "little") + b"half"], ids=["silent", "half"])
def test_a_peer_that_does_not_greet_in_time_is_cut_off_and_a_member_may_be_silent(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    async def work(scene: Scene) -> None:
        member = await join(scene, A)
        monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 0.5)
        stranger = await connect(scene)
        stranger.writer.write(said)
        async with asyncio.timeout(WAIT_S):
            assert await stranger.reader.read() == b""
        assert scene.fleet.connected().keys() == {A}
        member.say(WorkerEnded(attempt=Attempt(1), rank=Rank(0), signal=9))
        assert isinstance(await scene.next(), WorkerFailed)

    scene_test(work)


def test_an_agent_that_does_not_read_is_cut_off_and_costs_nobody_else_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel buffers on the way is some megabytes; the limit counts what is left in the coordinator."""
    monkeypatch.setattr(link, "MAX_BACKLOG_BYTES", 1 << 20)
    fence = Fence(run_uid=RUN, epoch=Epoch(3), attempt=Attempt(1))

    async def work(scene: Scene) -> None:
        deaf, listener = await join(scene, A), await join(scene, B)
        assert isinstance(deaf.writer.transport, asyncio.Transport)
        deaf.writer.transport.pause_reading()
        num_told = 0
        while A in scene.fleet.connected() and num_told < 200:
            scene.fleet.stop_gang(fence, "x" * (256 << 10), dump_stacks=False)
            num_told += 1
            assert isinstance(await listener.hear(), StopGang)
        assert scene.fleet.connected().keys() == {B}, f"{num_told} frames wait for an agent that does not read"
        lost = await scene.next()
        assert isinstance(lost, NodeLost)
        assert lost.node == A

    scene_test(work)


def test_a_closed_connection_is_a_lost_node_at_once_without_grace() -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        agent.writer.close()
        told = await scene.next()
        assert isinstance(told, NodeLost)
        assert (told.node, told.incarnation) == (A, 1)

    scene_test(work)


def test_a_run_that_is_over_waits_for_agents_that_clear_disks_of_their_own() -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        closing = asyncio.create_task(scene.fleet.close("done", is_run_over=True))
        told = await agent.hear()
        assert isinstance(told, Leave)
        assert told.is_run_over
        assert not closing.done()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await agent.reader.read(1)  # the coordinator does not hang up first
        agent.writer.close()
        async with asyncio.timeout(WAIT_S):
            await closing

    scene_test(work, setup=msgspec.structs.replace(SETUP, local_disk=LocalDisk(path="/disk")))


@pytest.mark.parametrize("dump_stacks", [True, False])
def test_a_coordinator_that_ends_waits_for_the_stacks_of_hung_workers_and_for_nothing_else(dump_stacks: bool) -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        scene.fleet.adopt_gang(Attempt(1), [A])
        scene.fleet.stop_gang(
            Fence(run_uid=RUN, epoch=Epoch(3), attempt=Attempt(1)), "no step", dump_stacks=dump_stacks
        )
        closing = asyncio.create_task(scene.fleet.close("the run has failed"))
        assert isinstance(await agent.hear(), StopGang)
        assert isinstance(await agent.hear(), Leave)
        await hangs_up(agent, closing, waits=dump_stacks)

    scene_test(work)


async def hangs_up(agent: FakeAgent, closing: asyncio.Task[None], *, waits: bool) -> None:
    """The fleet that closes ends an agent's connection, but where it waits for the agent, which does so then."""
    if waits:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await agent.reader.read(1)  # the coordinator does not hang up first
        agent.writer.close()
    else:
        assert await agent.reader.read() == b""
    async with asyncio.timeout(WAIT_S):
        await closing


@pytest.mark.parametrize(("passed_us", "is_owed"), [(1_000_000, True), (5_000_000, False)])
def test_stacks_that_a_restart_asked_for_just_before_are_asked_for_again_by_the_command_that_cuts_it_off(
    passed_us: int, is_owed: bool
) -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        for attempt, dump_stacks in ((2, True), (3, False)):
            fence = Fence(run_uid=RUN, epoch=Epoch(3), attempt=Attempt(attempt))
            scene.fleet.start_gang(fence, [A], restore=None, dump_stacks=dump_stacks)
            table = await agent.hear()
            assert isinstance(table, StartGang)
            assert table.dump_stacks
        scene.clock.advance_to(scene.clock.now_us() + passed_us)
        scene.fleet.stop_gang(fence, "stopped by hand", dump_stacks=False)
        closing = asyncio.create_task(scene.fleet.close("it was stopped"))
        stop = await agent.hear()
        assert isinstance(stop, StopGang)
        assert stop.dump_stacks == is_owed
        assert isinstance(await agent.hear(), Leave)
        await hangs_up(agent, closing, waits=is_owed)

    scene_test(work)


def test_a_run_that_is_over_waits_for_nobody_where_there_are_no_such_disks() -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        await scene.fleet.close("done", is_run_over=True)
        assert isinstance(await agent.hear(), Leave)
        assert await agent.reader.read() == b""

    scene_test(work)


def test_a_connection_that_returns_in_time_is_no_loss() -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        agent.writer.close()
        again = await connect(scene)
        again.say(hello(A, scene.fleet.expect(A, 1)))
        assert isinstance(await again.hear(), Welcome)
        again.say(WorkerEnded(attempt=Attempt(1), rank=Rank(0), signal=9))
        assert isinstance(await scene.next(), WorkerFailed)

    scene_test(work, reconnect_us=int(WAIT_S * 1e6))


def test_how_far_the_gang_came_is_told_before_the_failure_that_ends_it() -> None:
    async def work(scene: Scene) -> None:
        agent = await join(scene, A)
        scene.fleet.adopt_gang(Attempt(1), [A])
        agent.say(
            Beat(
                attempt=Attempt(1),
                step=Step(7),
                furthest_step=Step(7),
                phase="step",
                phase_age_us=5,
                slowest_step_us=0,
                stall_us=0,
                rendezvous_port=4000,
            )
        )
        agent.say(WorkerEnded(attempt=Attempt(1), rank=Rank(0), signal=9, quiet_us=5))
        tick, failed = await scene.next(), await scene.next()
        assert isinstance(tick, Tick)
        assert tick.progress is not None
        assert tick.progress.step == 7
        assert isinstance(failed, WorkerFailed)
        assert failed.quiet_us == 5

    scene_test(work)


def test_the_rank_table_names_the_first_nodes_port_and_a_late_comer_hears_it_too() -> None:
    async def work(scene: Scene) -> None:
        first = await join(scene, A)
        second = await join(scene, B)
        fence = Fence(run_uid=RUN, epoch=Epoch(3), attempt=Attempt(1))
        scene.fleet.start_gang(fence, [A, B], restore=None, dump_stacks=False)
        scene.fleet.save(SaveAt(fence=fence, step=Step(5), write_id=WriteId("a1-1")))
        table = await first.hear()
        assert isinstance(table, StartGang)
        assert (table.nodes, table.master_host, table.master_port) == ((A, B), "127.0.0.1", 4000)
        assert await second.hear() == table
        again = await connect(scene)
        again.say(hello(B, scene.fleet.expect(B, 1)))
        assert isinstance(await again.hear(), Welcome)
        assert await again.hear() == table
        assert isinstance(await again.hear(), SaveAt)
        first.say(RanksUp(attempt=Attempt(1)))
        again.say(RanksUp(attempt=Attempt(1)))
        assert await scene.next() == GangUp(attempt=Attempt(1))

    scene_test(work)


def test_the_rank_table_tells_where_each_node_listens_and_how_large_the_record_of_the_restore_is() -> None:
    async def work(scene: Scene) -> None:
        first = await join(scene, A, peer_port=5001)
        await join(scene, B, host="127.0.0.2", peer_port=5002)
        fence = Fence(run_uid=RUN, epoch=Epoch(3), attempt=Attempt(1))
        restore = RestoreFrom(step=Step(5), write_id=WriteId("a1-1"))
        nodes = [B, A, NodeId("not-there")]
        scene.fleet.start_gang(fence, nodes, restore=restore, dump_stacks=False, record_bytes=99)
        table = await first.hear()
        assert isinstance(table, StartGang)
        assert (table.restore, table.record_bytes) == (restore, 99)
        assert [(place.host, place.port) for place in table.peers] == [
            ("127.0.0.2", 5002),
            ("127.0.0.1", 5001),
            ("", 0),
        ]

    scene_test(work)


def test_a_silent_agent_is_listed_as_late_since_its_last_frame() -> None:
    async def work(scene: Scene) -> None:
        await join(scene, A)
        scene.clock.advance_to(1_100_000)
        await join(scene, B)
        scene.clock.advance_to(1_200_000)
        tick = scene.fleet.look()
        assert [(late.node, late.since_us) for late in tick.late] == [(A, 1_000_000)]

    scene_test(work)


def test_a_coordinator_that_was_away_itself_says_so_before_it_calls_anybody_late() -> None:
    async def work(scene: Scene) -> None:
        await join(scene, A)
        assert scene.fleet.look().awake_us is None
        scene.clock.advance_to(5_000_000)
        tick = scene.fleet.look()
        assert tick.awake_us == 5_000_000
        scene.clock.advance_to(5_200_000)
        assert scene.fleet.look().awake_us is None

    scene_test(work)


def test_a_taken_port_is_named_in_the_error() -> None:
    async def work(scene: Scene) -> None:
        settings = FleetSettings(
            run_uid=RUN, epoch=Epoch(1), setup=SETUP, beat_interval_us=1, tick_interval_us=1, reconnect_us=0
        )
        other = Fleet(settings, tokens=Tokens(b"s" * 32), clock=scene.clock, sink=scene.told.put_nowait)
        with pytest.raises(Unavailable, match=str(scene.port)):
            await other.listen("127.0.0.1", scene.port)

    scene_test(work)
