"""Every agent's connection, from accept to close; a node is lost when its connection ends and none follows.

A broken connection becomes NodeLost after `reconnect_us` (agents that may outlive a coordinator need a moment to come
back; others get none). What agents say is handed on. Neighbours: `admission` says who may come, `link` is one
connection, `server` counts what is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from behemoth.base.clock import Clock
from behemoth.base.errors import BehemothError, Denied, Unavailable
from behemoth.base.ids import NodeId
from behemoth.fleet.admission import Admission
from behemoth.fleet.link import Link
from behemoth.fleet.settings import FleetSettings
from behemoth.fleet.tokens import Tokens
from behemoth.state.evidence import Late, NodeJoined, NodeLost
from behemoth.wire import frames
from behemoth.wire.commands import Command, Leave, Rejected, StopGang, Welcome
from behemoth.wire.reports import Hello, Report

HANDSHAKE_TIMEOUT_S = 10.0
LATE_AFTER_BEATS = 1.5
"""An agent is late once this many beat intervals have passed without a frame."""
ACCEPT_BACKLOG = 4096
"""All agents of the largest run may connect at once after a change of coordinator."""
END_LIMIT_S = 1.0
LEAVING_LIMIT_S = 10.0
"""Time for agents to leave at the end of a run: at most 4 s for their workers and last messages, and then at most 5 s
to delete their files on their own disks. Ending their processes by force waits for no disk."""
STACKS_LIMIT_S = 4.0
"""Time for agents to have hung workers write their stacks, which takes at most 3 s, and for their last messages."""

_log = logging.getLogger(__name__)


class Connections:
    """At most one connection per node. `sink` is called with joined and lost nodes, `take` with each report; `standing`
    are the commands that an agent that comes back must hear again."""

    def __init__(
        self,
        settings: FleetSettings,
        *,
        tokens: Tokens,
        clock: Clock,
        sink: Callable[[NodeJoined | NodeLost], None],
        take: Callable[[Link, Report], None],
        standing: Callable[[], Sequence[Command]],
    ) -> None:
        self._settings = settings
        self._admission = Admission(run_uid=settings.run_uid, tokens=tokens)
        self._clock = clock
        self._sink = sink
        self._take = take
        self._standing = standing
        self._reports = msgspec.msgpack.Decoder(Report)
        self._server: asyncio.Server | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._links: OrderedDict[NodeId, Link] = OrderedDict()  # longest silent first
        self._joined: dict[NodeId, int] = {}
        self._is_closing = False

    async def listen(self, host: str, port: int) -> int:
        """Opens the server; the port that it got. Raises Unavailable when the port is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, backlog=ACCEPT_BACKLOG)
        except OSError as error:
            raise Unavailable(
                f"coordinator: expected to listen on {host}:{port}, got {error.strerror or error}",
                hint="another process holds the port; name a free one, or 0 for any",
                code="port-in-use",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, reason: str, *, is_run_over: bool) -> None:
        """Tells every agent to leave and ends the server; waits for at most a second, and before that for agents that
        have something to do first, as long as they may take for it: for `STACKS_LIMIT_S` where the last workers hang,
        for `LEAVING_LIMIT_S` where agents have files on disks of their own that nobody will want back."""
        self._is_closing = True
        self.broadcast(Leave(reason=reason, is_run_over=is_run_over))
        if self._server is not None:
            self._server.close()
        for task in self._waiting:
            task.cancel()
        last_work_s = self._last_work_s(is_run_over=is_run_over)
        if last_work_s and self._open:
            await asyncio.wait(list(self._open), timeout=last_work_s)  # an agent hangs up when it is done
        for writer in self._open.values():
            writer.close()
        ending = [*self._waiting, *self._open]
        if ending:
            await asyncio.wait(ending, timeout=END_LIMIT_S)

    def _last_work_s(self, *, is_run_over: bool) -> float:
        """Whoever ends the agents' processes afterwards waits for none of this."""
        if is_run_over and self._settings.setup.local_disk is not None:
            return LEAVING_LIMIT_S
        is_dumping = any(isinstance(command, StopGang) and command.dump_stacks for command in self._standing())
        return STACKS_LIMIT_S if is_dumping else 0.0

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

    def of(self, node: NodeId) -> Link | None:
        return self._links.get(node)

    def silence_us(self) -> dict[NodeId, int]:
        """Microseconds since each connected agent was last heard."""
        now_us = self._clock.now_us()
        return {node: now_us - link.heard_us for node, link in self._links.items()}

    def late(self) -> tuple[Late, ...]:
        """O(late): links are kept in the order in which they were last heard."""
        heard_by_us = self._clock.now_us() - int(self._settings.beat_interval_us * LATE_AFTER_BEATS)
        late = []
        for node, link in self._links.items():
            if link.heard_us >= heard_by_us:
                break
            late.append(Late(node=node, since_us=link.heard_us))
        return tuple(late)

    def broadcast(self, command: Command) -> None:
        frame = frames.encode_frame(command)
        for link in list(self._links.values()):
            link.send(frame)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        link: Link | None = None
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                link = await self._admit(reader, writer)
            await self._listen_to(link, reader)
        except (BehemothError, TimeoutError, OSError) as error:
            _log.info("agent %s: connection ended: %s", link.node if link else "(unknown)", error)
        finally:
            del self._open[task]
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
        for command in self._standing():
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
            self._wait_for(link)

    def _wait_for(self, link: Link) -> None:
        task = asyncio.create_task(self._wait_for_return(link), name=f"fleet-wait-{link.node}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _wait_for_return(self, link: Link) -> None:
        await asyncio.sleep(self._settings.reconnect_us / 1e6)
        if link.node not in self._links:
            self._give_up(link)

    def _give_up(self, link: Link) -> None:
        if self._joined.get(link.node) != link.incarnation:
            return
        del self._joined[link.node]
        self._sink(NodeLost(node=link.node, incarnation=link.incarnation, reason="its connection closed"))
