"""The coordinator's server: admits agents, counts their reports into evidence, and broadcasts commands.

It decides nothing. A broken connection becomes NodeLost after `reconnect_us` (agents that may outlive a coordinator
need a moment to come back; others get none); silence is listed in a Tick, and how long is too long is the brain's
business. Neighbours: `muster` counts, `progress` watches steps, `behemoth.app` turns effects into calls of this object.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

import msgspec

from behemoth.base.clock import Clock
from behemoth.base.errors import BehemothError, Denied, Unavailable
from behemoth.base.ids import Attempt, Epoch, NodeId, RunUid, WriteId
from behemoth.fleet.admission import Admission
from behemoth.fleet.link import Link
from behemoth.fleet.muster import GangMuster, SaveMuster
from behemoth.fleet.progress import ProgressBoard, Vitals
from behemoth.fleet.tokens import Tokens
from behemoth.fleet.translate import evidence_of
from behemoth.state.evidence import Evidence, Late, NodeJoined, NodeLost, Tick
from behemoth.state.fence import Fence
from behemoth.wire import frames
from behemoth.wire.messages import (
    AbortSave,
    Beat,
    Command,
    CommitSeen,
    GoAhead,
    Hello,
    Leave,
    PeerPlace,
    ProgramRefused,
    RanksFinished,
    RanksGone,
    RanksRestored,
    RanksUp,
    ReceiptBatch,
    Refused,
    Rejected,
    Report,
    RestoreFrom,
    RestoreRefused,
    SaveAt,
    SaveBroken,
    SaveMissed,
    SaveReached,
    Setup,
    StartGang,
    StopGang,
    Welcome,
    WorkerEnded,
)

HANDSHAKE_TIMEOUT_S = 10.0
LATE_AFTER_BEATS = 1.5
"""An agent is late once this many beat intervals have passed without a frame."""
AWAY_US = 1_000_000
"""Two looks farther apart mean that this process was stopped or held up (Ctrl-Z, a stalled disk). What agents said
meanwhile still waits in the sockets, so their silence is none."""
ACCEPT_BACKLOG = 4096
"""All agents of the largest run may knock at once after a change of coordinator."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What one coordinator needs to serve one run."""

    run_uid: RunUid
    epoch: Epoch
    setup: Setup
    beat_interval_us: int
    tick_interval_us: int
    """How often late agents and progress are told."""
    reconnect_us: int
    """How long a broken connection may take to come back before its node counts as lost; 0: at once."""


class Fleet:
    """All agents of a run. Every method but `listen` and `close` is called on the event loop and does not block."""

    def __init__(
        self, settings: FleetSettings, *, tokens: Tokens, clock: Clock, sink: Callable[[Evidence], None]
    ) -> None:
        self._settings = settings
        self._admission = Admission(run_uid=settings.run_uid, tokens=tokens)
        self._clock = clock
        self._sink = sink
        self._reports = msgspec.msgpack.Decoder(Report)
        self._server: asyncio.Server | None = None
        self._timers: set[asyncio.Task[None]] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._links: OrderedDict[NodeId, Link] = OrderedDict()  # longest silent first
        self._joined: dict[NodeId, int] = {}
        self._gang: GangMuster | None = None
        self._board: ProgressBoard | None = None
        self._saves: dict[WriteId, SaveMuster] = {}
        self._standing: list[Command] = []  # what an agent that comes back must hear again
        self._had_late = False
        self._looked_us = clock.now_us()
        self._is_closing = False

    # Life

    async def listen(self, host: str, port: int) -> int:
        """Opens the server and starts ticking; the port that it got. Raises Unavailable when the port is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, backlog=ACCEPT_BACKLOG)
        except OSError as error:
            raise Unavailable(
                f"coordinator: expected to listen on {host}:{port}, got {error.strerror or error}",
                hint="another process holds the port; name a free one, or 0 for any",
                code="port-in-use",
            ) from error
        self._spawn(self._tick(), "fleet-tick")
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, reason: str) -> None:
        """Tells every agent to leave and ends the server; waits for at most a second."""
        self._is_closing = True
        self._broadcast(Leave(reason=reason))
        if self._server is not None:
            self._server.close()
        for task in self._timers:
            task.cancel()
        for connection in self._connections.values():
            connection.close()
        ending = [*self._timers, *self._connections]
        if ending:
            await asyncio.wait(ending, timeout=1.0)

    # What the body asks for

    def expect(self, node: NodeId, incarnation: int) -> str:
        """From now on only this incarnation of the node is admitted; the token that it must show."""
        self._admission.expect(node, incarnation)
        return self._admission.token_for(node, incarnation)

    def expel(self, node: NodeId, incarnation: int, reason: str) -> None:
        """Never listen to this incarnation again; tell it to leave if it hears."""
        self._admission.expect(node, incarnation + 1)
        link = self._links.get(node)
        if link is not None and link.incarnation <= incarnation:
            link.send(frames.encode_frame(Leave(reason=reason)))
            link.cut()
            del self._links[node]
        self._joined.pop(node, None)

    def start_gang(
        self,
        fence: Fence,
        nodes: Sequence[NodeId],
        *,
        restore: RestoreFrom | None,
        dump_stacks: bool,
        domains: Sequence[int] | None = None,
        record_bytes: int = 0,
    ) -> None:
        """Forms the gang of the attempt and broadcasts its table. When the node of slot 0 has just been lost nothing
        is sent: its loss is on its way to the brain, which then starts a higher attempt. `domains` are the failure
        domains of the nodes; by default each is one of its own. `record_bytes`: see `StartGang`."""
        self.adopt_gang(fence.attempt, nodes)
        first = self._links.get(nodes[0])
        if first is None:
            _log.info("start of attempt %d waits: node %s is not connected", fence.attempt, nodes[0])
            return
        table = StartGang(
            fence=fence,
            nodes=tuple(nodes),
            master_host=first.host,
            master_port=first.rendezvous_port,
            restore=restore,
            dump_stacks=dump_stacks,
            peers=tuple(map(self._place, nodes, domains if domains is not None else range(len(nodes)))),
            record_bytes=record_bytes,
        )
        self._stand(table)

    def _place(self, node: NodeId, domain: int) -> PeerPlace:
        link = self._links.get(node)
        if link is None:
            return PeerPlace(host="", port=0, domain=domain)
        return PeerPlace(host=link.host, port=link.peer_port, domain=domain)

    def adopt_gang(self, attempt: Attempt, nodes: Sequence[NodeId]) -> None:
        """Counts reports of this attempt from now on; its workers may already run under a former coordinator."""
        self._gang = GangMuster(attempt, nodes)
        self._board = ProgressBoard(attempt, nodes, floors=self._settings.setup.hang_floors)
        self._standing = []

    def stop_gang(self, fence: Fence, reason: str, *, dump_stacks: bool) -> None:
        self._standing = []
        self._stand(StopGang(fence=fence, reason=reason, dump_stacks=dump_stacks))

    def save(self, command: SaveAt) -> None:
        """Announces a save and counts what becomes of it."""
        if self._gang is not None:
            save = SaveMuster(command.write_id, self._gang.attempt, self._gang.members)
            self._saves.setdefault(command.write_id, save)
        self._stand(command)

    def agree(self, command: GoAhead) -> None:
        self._stand(command)

    def save_of(self, write_id: WriteId) -> SaveMuster | None:
        """What has come in for a write that was announced in this term and has not ended."""
        return self._saves.get(write_id)

    def saves_in_flight(self) -> list[WriteId]:
        """Writes that were announced in this term and have not ended. Safe from any thread."""
        return list(self._saves)

    def end_save(self, command: CommitSeen | AbortSave) -> None:
        """Tells how the save ended and frees what was kept for it."""
        self._saves.pop(command.write_id, None)
        self._standing = [told for told in self._standing if getattr(told, "write_id", None) != command.write_id]
        self._broadcast(command)

    def vitals(self) -> Vitals | None:
        return self._board.vitals() if self._board is not None else None

    def connected(self) -> dict[NodeId, int]:
        """Microseconds since each connected agent was last heard."""
        now_us = self._clock.now_us()
        return {node: now_us - link.heard_us for node, link in self._links.items()}

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        link: Link | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                link = await self._admit(reader, writer)
            await self._listen_to(link, reader)
        except (BehemothError, TimeoutError, OSError) as error:
            _log.info("agent %s: connection ended: %s", link.node if link else "(unknown)", error)
        finally:
            del self._connections[task]
            writer.close()
            if link is not None:
                self._link_broke(link)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link:
        body = await frames.read_frame(reader, limit_bytes=frames.MAX_HELLO_BYTES)
        hello = self._admission.check(frames.decode_body(self._reports, body))
        if isinstance(hello, Rejected):
            writer.write(frames.encode_frame(hello))
            await writer.drain()
            raise Denied(f"handshake: {hello.reason}", code=hello.code)
        link = Link(
            hello.node,
            hello.incarnation,
            hello.host,
            hello.rendezvous_port,
            hello.peer_port,
            writer,
            self._clock.now_us(),
        )
        former = self._links.pop(hello.node, None)
        if former is not None:
            former.cut()
        self._links[hello.node] = link
        link.send(
            frames.encode_frame(
                Welcome(
                    minor=frames.PROTOCOL_MINOR,
                    epoch=self._settings.epoch,
                    beat_interval_us=self._settings.beat_interval_us,
                    setup=self._settings.setup,
                )
            )
        )
        self._tell_joined(hello)
        for command in self._standing:
            link.send(frames.encode_frame(command))
        return link

    def _tell_joined(self, hello: Hello) -> None:
        if self._joined.get(hello.node) == hello.incarnation:
            return
        self._joined[hello.node] = hello.incarnation
        self._sink(NodeJoined(node=hello.node, incarnation=hello.incarnation, attempt=hello.attempt))

    async def _listen_to(self, link: Link, reader: asyncio.StreamReader) -> None:
        while True:
            report = frames.decode_body(self._reports, await frames.read_frame(reader))
            link.heard_us = self._clock.now_us()
            if self._links.get(link.node) is not link:
                raise Denied(f"node {link.node}: incarnation {link.incarnation} was replaced", code="stale-incarnation")
            self._links.move_to_end(link.node)
            self._take(link, report)

    def _link_broke(self, link: Link) -> None:
        if self._is_closing or self._links.get(link.node) is not link:
            return
        del self._links[link.node]
        if self._settings.reconnect_us == 0:
            self._give_up(link)
        else:
            self._spawn(self._wait_for_return(link), f"fleet-wait-{link.node}")

    async def _wait_for_return(self, link: Link) -> None:
        await asyncio.sleep(self._settings.reconnect_us / 1e6)
        if link.node not in self._links:
            self._give_up(link)

    def _give_up(self, link: Link) -> None:
        if self._joined.get(link.node) != link.incarnation:
            return
        del self._joined[link.node]
        self._sink(NodeLost(node=link.node, incarnation=link.incarnation, reason="its connection closed"))

    # Reports

    def _take(self, link: Link, report: Report) -> None:
        match report:
            case Beat():
                self._beat(link, report)
            case RanksUp() | RanksRestored() | RanksGone() | RanksFinished():
                if isinstance(report, RanksFinished) and self._board is not None:
                    self._board.finished(link.node, report.attempt)
                self._tell(self._gang.count(link.node, report) if self._gang is not None else None)
            case SaveReached() | ReceiptBatch():
                save = self._saves.get(report.write_id)
                self._tell(save.count(link.node, report) if save is not None else None)
            case WorkerEnded():
                self._tell_progress()
                self._sink(evidence_of(link.node, report))
            case RestoreRefused() | ProgramRefused() | SaveMissed() | SaveBroken():
                self._sink(evidence_of(link.node, report))
            case Refused():
                _log.info("node %s refused %s: %s", link.node, report.command, report.reason)
            case Hello():
                raise Denied(f"node {link.node}: a second hello on one connection", code="hello-repeated")

    def _beat(self, link: Link, beat: Beat) -> None:
        link.rendezvous_port = beat.rendezvous_port
        if self._board is None:
            return
        self._board.note(link.node, beat, link.heard_us)
        if self._board.is_first_step_due():
            self._sink(self.look())

    def _tell_progress(self) -> None:
        """What the last beats said and no tick has told yet, before something ends the attempt."""
        tick = self.look()
        if _says_something(tick):
            self._sink(tick)

    def _tell(self, evidence: Evidence | None) -> None:
        if evidence is not None:
            self._sink(evidence)

    def look(self) -> Tick:
        """Who is late now, and the progress that has not been told yet."""
        now_us = self._clock.now_us()
        was_away = now_us - self._looked_us > AWAY_US
        self._looked_us = now_us
        late = self._late()
        self._had_late = bool(late)
        progress = self._board.progress() if self._board is not None else None
        return Tick(late=late, progress=progress, awake_us=now_us if was_away else None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._settings.tick_interval_us / 1e6)
            had_late = self._had_late
            tick = self.look()
            if had_late or _says_something(tick):
                self._sink(tick)

    def _late(self) -> tuple[Late, ...]:
        """O(late): links are kept in the order in which they were last heard."""
        heard_by_us = self._clock.now_us() - int(self._settings.beat_interval_us * LATE_AFTER_BEATS)
        late = []
        for node, link in self._links.items():
            if link.heard_us >= heard_by_us:
                break
            late.append(Late(node=node, since_us=link.heard_us))
        return tuple(late)

    # Commands

    def _stand(self, command: Command) -> None:
        self._standing.append(command)
        self._broadcast(command)

    def _broadcast(self, command: Command) -> None:
        frame = frames.encode_frame(command)
        for link in list(self._links.values()):
            link.send(frame)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)


def _says_something(tick: Tick) -> bool:
    return bool(tick.late) or tick.progress is not None or tick.awake_us is not None
