"""What one would write first: an asyncio server with a task and a deadline per agent, and a full scan every tick.

It reads the same frames from the same agents, checks the same tokens and notices the same silence, but it knows no
gang, keeps no journal, decides nothing and starts nothing: it does less, so it is no
alternative. Tells `listening` and `evicted` as its counterpart does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from programs import fleet_scene as scene

from behemoth.base.errors import BehemothError
from behemoth.base.ids import Epoch, NodeId
from behemoth.wire import frames
from behemoth.wire.commands import Welcome
from behemoth.wire.reports import Beat, Hello, Report


@dataclass(slots=True)
class Agent:
    """The last that was heard of one."""

    heard_s: float
    beat: Beat | None = None


class NaiveCoordinator:
    """`agents` holds those that are connected."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._tokens = scene.tokens()
        self._reports = msgspec.msgpack.Decoder(Report)
        self._agents: dict[NodeId, Agent] = {}
        self.view: tuple[int, int, float] = (0, 0, 0.0)

    async def run(self, port: int) -> None:
        """Until the harness kills the process."""
        server = await asyncio.start_server(self._serve, scene.HOST, port, backlog=4096)
        scene.tell("listening", port=server.sockets[0].getsockname()[1])
        while True:
            await asyncio.sleep(scene.TICK_S)
            self._scan()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello: Hello | None = None
        try:
            hello = frames.decode_body(self._reports, await frames.read_frame(reader))
            if not isinstance(hello, Hello) or not self._tokens.is_valid(hello.token, hello.node, hello.incarnation):
                return
            welcome = Welcome(minor=0, epoch=self._epoch, beat_interval_us=round(scene.BEAT_S * 1e6), setup=scene.SETUP)
            writer.write(frames.encode_frame(welcome))
            await self._listen(self._agents.setdefault(hello.node, Agent(scene.now_s())), reader)
        except TimeoutError:
            assert hello is not None
            scene.tell("evicted", node=hello.node)
        except (BehemothError, OSError):
            pass
        finally:
            writer.close()

    async def _listen(self, agent: Agent, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(scene.LIMIT_S):
                report = frames.decode_body(self._reports, await frames.read_frame(reader))
            agent.heard_s = scene.now_s()
            if isinstance(report, Beat):
                agent.beat = report

    def _scan(self) -> None:
        """Progress and the longest silence, from every agent."""
        beats = [agent.beat for agent in self._agents.values() if agent.beat is not None]
        silent_s = scene.now_s() - min((agent.heard_s for agent in self._agents.values()), default=scene.now_s())
        self.view = (min((b.step for b in beats), default=0), max((b.step for b in beats), default=0), silent_s)


if __name__ == "__main__":
    told = scene.settings()
    asyncio.run(NaiveCoordinator(Epoch(int(told["epoch"]))).run(int(told["port"])))
