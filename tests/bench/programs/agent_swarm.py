"""Simulated agents: thousands of real `behemoth.agent.link.Link`s in one process, beating once a second each.

Everything that goes over the wire is what an agent sends: hello, gang reports, beats whose steps advance. There are no
workers behind them. The harness writes `freeze NAME ...` to stdin; told are `welcomed` (all agents are in, under which
epoch) and `frozen`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from programs import fleet_scene as scene

from behemoth.agent.link import Introduction, Link, jitter
from behemoth.agent.settings import AgentSettings
from behemoth.base.errors import Denied
from behemoth.base.ids import Attempt, Epoch, NodeId, Step
from behemoth.wire.commands import Command, StartGang, Welcome
from behemoth.wire.reports import Beat, RanksRestored, RanksUp

TURNS_PER_BEAT = 100
"""Beats are spread evenly over the interval, as those of real agents are by chance."""


class Agent:
    """The listener of one link."""

    def __init__(self, swarm: Swarm, node: NodeId, port: int) -> None:
        self._swarm = swarm
        self.node = node
        self.attempt = Attempt(0)
        self.step = Step(0)
        self.is_frozen = False
        self.is_out = False
        self.beat_s = 0.0
        self.link = Link(_settings(node, port), self, pause=jitter)

    async def run(self) -> None:
        """Until the coordinator turns this agent away."""
        with contextlib.suppress(Denied):
            await self.link.run()
        self.is_out = True
        self._swarm.no_longer_expect(self)

    def introduction(self, host: str) -> Introduction:
        del host
        return Introduction(attempt=self.attempt, rendezvous_port=4000, peer_port=4001)

    def welcomed(self, welcome: Welcome) -> None:
        self._swarm.note_welcome(self, welcome.epoch)

    def parted(self, reason: str) -> None:
        del reason

    def command(self, command: Command) -> None:
        if self.is_frozen or not isinstance(command, StartGang):
            return
        self.attempt = command.fence.attempt
        self.step = Step(0)
        self.link.send(RanksUp(attempt=self.attempt))
        self.link.send(RanksRestored(attempt=self.attempt, step=Step(0), num_from_memory=0))

    def beat(self) -> None:
        if self.is_frozen:
            return
        is_training = self.attempt > 0
        self.link.send(
            Beat(
                attempt=self.attempt,
                step=self.step,
                furthest_step=self.step,
                phase="step" if is_training else "start",
                phase_age_us=1000,
                slowest_step_us=1_000_000 if self.step else 0,
                stall_us=0,
                rendezvous_port=4000,
                loss=2.5,
                tokens=self.step * 8192,
            )
        )
        self.beat_s = scene.now_s()
        self.step = Step(self.step + is_training)


class Swarm:
    """All agents of one process."""

    def __init__(self, nodes: list[NodeId], port: int) -> None:
        self._agents = {node: Agent(self, node, port) for node in nodes}
        self._epoch = Epoch(0)
        self._missing: set[Agent] = set()  # of the newest epoch

    def note_welcome(self, agent: Agent, epoch: Epoch) -> None:
        """Tells once for each epoch that all agents are in; those that are silent or turned away do not count."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._missing = {one for one in self._agents.values() if not (one.is_frozen or one.is_out)}
        self.no_longer_expect(agent)

    def no_longer_expect(self, agent: Agent) -> None:
        if agent in self._missing:
            self._missing.discard(agent)
            if not self._missing:
                scene.tell("welcomed", epoch=self._epoch)

    async def run(self) -> None:
        """Until stdin ends."""
        async with asyncio.TaskGroup() as group:
            links = [group.create_task(agent.run(), name=node) for node, agent in self._agents.items()]
            beats = group.create_task(self._beat(), name="beats")
            await self._obey()
            for task in (*links, beats):
                task.cancel()

    async def _beat(self) -> None:
        agents = list(self._agents.values())
        turn, start_s = 0, scene.now_s()
        while True:
            for agent in agents[turn % TURNS_PER_BEAT :: TURNS_PER_BEAT]:
                agent.beat()
            turn += 1
            await asyncio.sleep(max(0.0, start_s + turn * scene.BEAT_S / TURNS_PER_BEAT - scene.now_s()))

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        running = asyncio.get_running_loop()
        await running.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            for name in line.decode().split():
                self._freeze(self._agents[NodeId(name)])

    def _freeze(self, agent: Agent) -> None:
        """No beat from now on, as when the machine stands still."""
        agent.is_frozen = True
        self.no_longer_expect(agent)
        scene.tell("frozen", node=agent.node, last_beat_s=agent.beat_s)


def _settings(node: NodeId, port: int) -> AgentSettings:
    return AgentSettings(
        host=scene.HOST,
        port=port,
        run_uid=scene.RUN,
        node=node,
        incarnation=1,
        token=scene.tokens().mint(node, 1),
        lifeline_fd=None,
    )


if __name__ == "__main__":
    told = scene.settings()
    asyncio.run(Swarm(scene.nodes(int(told["num_agents"])), int(told["port"])).run())
