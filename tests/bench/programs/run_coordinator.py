"""The coordinator of a local run without its workers: server, brain, journal, books and desk as `behemoth.wiring.run`
joins them. Only its machines are none: the agents are simulated elsewhere.

Tells `listening`, and `evicted` when the brain has given up a silent node.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from programs import fleet_scene as scene

from behemoth.app.body import AgentProgram, LocalBody
from behemoth.app.checkpoint_desk import CheckpointDesk
from behemoth.app.event_log import EventLog
from behemoth.app.history import History, read_history
from behemoth.app.journal_file import JournalFile
from behemoth.app.machines import Machines
from behemoth.base.clock import WallClock
from behemoth.base.ids import Epoch, NodeId
from behemoth.fleet.server import Fleet
from behemoth.fleet.settings import FleetSettings
from behemoth.ports import NodeGone
from behemoth.reconcile.loop import Loop
from behemoth.state.config import Cadence, RunConfig
from behemoth.state.effect import Evict
from behemoth.state.evidence import CommitsFound, Decided, Evidence, RunOpened, TermBegan
from behemoth.state.observation import Observation
from behemoth.storage.open import open_store

Witness = Callable[[Evidence, Observation | None, Observation], None]


class NoMachines:
    """A Runtime whose agents run already, elsewhere."""

    def __init__(self, nodes: Sequence[NodeId]) -> None:
        self._nodes = nodes

    def nodes(self) -> Sequence[NodeId]:
        return self._nodes

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        pass

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        pass

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        time.sleep(timeout_s)
        return ()

    def close(self) -> None:
        pass


def tell_evictions(evidence: Evidence, before: Observation | None, after: Observation) -> None:
    """A witness of the loop; neither observation matters to it."""
    del before, after
    if isinstance(evidence, Decided):
        for effect in evidence.effects:
            if isinstance(effect, Evict):
                scene.tell("evicted", node=effect.node)


async def coordinate(port: int, epoch: Epoch, num_agents: int, directory: Path) -> None:
    """One term; the harness ends it by SIGKILL."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = scene.nodes(num_agents)
        journal = JournalFile(directory / "evidence.jsonl")
        history = read_history(journal.open())
        former = history.observation
        clock = WallClock(not_before_us=former.now_us if former is not None else 0)
        loop: list[Loop] = []

        def sink(evidence: Evidence) -> None:
            loop[0].tell(evidence)

        fleet = Fleet(_fleet_settings(epoch), tokens=scene.tokens(), clock=clock, sink=sink)
        machines = Machines(NoMachines(nodes), sink)
        desk = CheckpointDesk(open_store(str(directory / "store")), run_name="bench", clock=clock, tell=sink)
        events = EventLog(directory / "events.jsonl", clock=clock, listener=lambda _: None)
        events.open()
        stack.callback(events.close)
        body = LocalBody(
            fleet=fleet,
            machines=machines,
            desk=desk,
            agent=AgentProgram(argv=("agent",), env={}, log_dir=directory),
            domains={node: order for order, node in enumerate(nodes)},
            witnesses=_witnesses(history, events),
        )
        loop.append(Loop(clock=clock, journal=journal, body=body, observation=former))
        machines.start()
        if former is None:
            loop[0].tell(RunOpened(config=_config(nodes)))
        else:
            body.resume(former)
        loop[0].tell(TermBegan(epoch=epoch))
        loop[0].tell(CommitsFound(commits=()))
        scene.tell("listening", port=await fleet.listen(scene.HOST, port))
        await loop[0].run()


def _witnesses(history: History, events: EventLog) -> tuple[Witness, ...]:
    return (history.witness, events.witness, tell_evictions)


def _fleet_settings(epoch: Epoch) -> FleetSettings:
    return FleetSettings(
        run_uid=scene.RUN,
        epoch=epoch,
        setup=scene.SETUP,
        beat_interval_us=round(scene.BEAT_S * 1e6),
        tick_interval_us=round(scene.TICK_S * 1e6),
        reconnect_us=round(scene.LIMIT_S * 1e6),
    )


def _config(nodes: Sequence[NodeId]) -> RunConfig:
    return RunConfig(
        run_uid=scene.RUN,
        nodes=tuple(nodes),
        num_slots=len(nodes) - scene.NUM_SPARES,
        ranks_per_node=scene.SETUP.ranks_per_node,
        total_steps=scene.TOTAL_STEPS,
        cadence=Cadence(steps=scene.TOTAL_STEPS),
        keep_last=2,
        keep_every_steps=None,
        heartbeat_limit_us=round(scene.LIMIT_S * 1e6),
        hang_floors=scene.FLOORS,
        settle_us=100_000,
        max_failures=3,
        node_wait_us=scene.FLOORS.start_us,
        rejoin_us=round(scene.GRACE_S * 1e6),
        save_limit_us=scene.FLOORS.save_us,
    )


if __name__ == "__main__":
    told = scene.settings()
    asyncio.run(
        coordinate(int(told["port"]), Epoch(int(told["epoch"])), int(told["num_agents"]), Path(str(told["directory"])))
    )
