"""The coordinator's server: counts what agents report into evidence, and broadcasts commands.

It decides nothing: silence is listed in a Tick, and how long is too long is the brain's business. Neighbours:
`connections` has the agents' connections, `muster` counts, `progress` watches steps, `behemoth.app` turns effects into
calls of this object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from behemoth.base.clock import Clock
from behemoth.base.errors import Denied
from behemoth.base.ids import Attempt, NodeId, WriteId
from behemoth.fleet.connections import END_LIMIT_S, STACKS_LIMIT_S, Connections
from behemoth.fleet.link import Link
from behemoth.fleet.muster import GangMuster, SaveMuster
from behemoth.fleet.own_disks import OwnDisks
from behemoth.fleet.progress import ProgressBoard, Vitals
from behemoth.fleet.settings import FleetSettings
from behemoth.fleet.tokens import Tokens
from behemoth.fleet.translate import evidence_of
from behemoth.state.evidence import Evidence, Tick
from behemoth.state.fence import Fence
from behemoth.wire.commands import (
    AbortSave,
    Command,
    CommitSeen,
    GoAhead,
    PeerPlace,
    RestoreFrom,
    SaveAt,
    StartGang,
    StopGang,
)
from behemoth.wire.reports import (
    Beat,
    DiskState,
    Hello,
    ProgramRefused,
    RanksFinished,
    RanksGone,
    RanksRestored,
    RanksUp,
    ReceiptBatch,
    Refused,
    Report,
    RestoreRefused,
    SaveBroken,
    SaveMissed,
    SaveReached,
    WorkerEnded,
)

AWAY_US = 1_000_000
"""Two looks farther apart mean that this process was stopped or held up (Ctrl-Z, a stalled disk). What agents said
meanwhile still waits in the sockets, so their silence is none."""

_log = logging.getLogger(__name__)


class Fleet:
    """All agents of a run. Every method but `listen` and `close` is called on the event loop and does not block."""

    def __init__(
        self,
        settings: FleetSettings,
        *,
        tokens: Tokens,
        clock: Clock,
        sink: Callable[[Evidence], None],
        on_disk: Callable[[NodeId, DiskState], None] = lambda _node, _told: None,
    ) -> None:
        """`sink` hears what the brain must know, `on_disk` of nodes' own disks, which is for people alone."""
        self._settings = settings
        self._clock = clock
        self._sink = sink
        self._connections = Connections(
            settings, tokens=tokens, clock=clock, sink=sink, take=self._take, standing=lambda: self._standing
        )
        self._ticking: asyncio.Task[None] | None = None
        self._own_disks = OwnDisks(on_disk)
        self._gang: GangMuster | None = None
        self._board: ProgressBoard | None = None
        self._saves: dict[WriteId, SaveMuster] = {}
        self._standing: list[Command] = []  # what an agent that comes back must hear again
        self._stacks_due_us = 0  # until then agents may still have hung workers write their stacks
        self._had_late = False
        self._looked_us = clock.now_us()

    async def listen(self, host: str, port: int) -> int:
        """Opens the server and starts ticking; the port that it got. Raises Unavailable when the port is taken."""
        port = await self._connections.listen(host, port)
        self._ticking = asyncio.create_task(self._tick(), name="fleet-tick")
        return port

    async def close(self, reason: str, *, is_run_over: bool = False) -> None:
        """Tells every agent to leave and ends the server; waits as `Connections.close`. `is_run_over`: see `Leave`."""
        if self._ticking is not None:
            self._ticking.cancel()
        await self._connections.close(reason, is_run_over=is_run_over)
        if self._ticking is not None:
            await asyncio.wait([self._ticking], timeout=END_LIMIT_S)

    # What the body asks for

    def expect(self, node: NodeId, incarnation: int) -> str:
        """See `Connections.expect`."""
        return self._connections.expect(node, incarnation)

    def expel(self, node: NodeId, incarnation: int, reason: str) -> None:
        """See `Connections.expel`."""
        self._connections.expel(node, incarnation, reason)

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
        first = self._connections.of(nodes[0])
        if first is None:
            _log.info("start of attempt %d waits: node %s is not connected", fence.attempt, nodes[0])
            return
        table = StartGang(
            fence=fence,
            nodes=tuple(nodes),
            master_host=first.host,
            master_port=first.rendezvous_port,
            restore=restore,
            dump_stacks=self._wants_stacks(dump_stacks),
            peers=tuple(map(self._place, nodes, domains if domains is not None else range(len(nodes)))),
            record_bytes=record_bytes,
        )
        self._stand(table)

    def _place(self, node: NodeId, domain: int) -> PeerPlace:
        link = self._connections.of(node)
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
        self._stand(StopGang(fence=fence, reason=reason, dump_stacks=self._wants_stacks(dump_stacks)))

    def _wants_stacks(self, dump_stacks: bool) -> bool:
        """Whether a command about the gang asks for the stacks of its workers: also where it comes so soon behind one
        that did that agents give that one's work up for it."""
        now_us = self._clock.now_us()
        if dump_stacks:
            self._stacks_due_us = now_us + int(STACKS_LIMIT_S * 1e6)
        return dump_stacks or now_us < self._stacks_due_us

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
        self._connections.broadcast(command)

    def vitals(self) -> Vitals | None:
        return self._board.vitals() if self._board is not None else None

    def connected(self) -> dict[NodeId, int]:
        """Microseconds since each connected agent was last heard."""
        return self._connections.silence_us()

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
        self._own_disks.hear(link.node, beat.own_disk)
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
        """A Tick: which agents are late now, and progress since the last one."""
        now_us = self._clock.now_us()
        was_away = now_us - self._looked_us > AWAY_US
        self._looked_us = now_us
        late = self._connections.late()
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

    # Commands

    def _stand(self, command: Command) -> None:
        self._standing.append(command)
        self._connections.broadcast(command)


def _says_something(tick: Tick) -> bool:
    return bool(tick.late) or tick.progress is not None or tick.awake_us is not None
