"""The process of `behemoth run`: builds store, fleet, runtime and body, joins them to the loop, and takes them down.

The only file that knows all of them. Nothing is decided here; the order of steps is what matters: lock, journal, store,
term, server, machines, loop, and the reverse at the end, whatever happens in between. Neighbours: `settling` and
`second_store` look after the two stores, `engine` gives the machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from behemoth.agent.settings import COORDINATOR_VARIABLE, RUN_UID_VARIABLE
from behemoth.app.body import AgentProgram, LocalBody
from behemoth.app.checkpoint_desk import CheckpointDesk, unsure_writes
from behemoth.app.configure import agent_setup, brain_config, failure_domains, to_us
from behemoth.app.drains.drainer import Drainer
from behemoth.app.drains.second_store import SecondStore, last_commit
from behemoth.app.drills import Drills
from behemoth.app.event_log import EventLog
from behemoth.app.events import Event
from behemoth.app.history import History, read_history
from behemoth.app.journal_file import JournalFile
from behemoth.app.lineage import require_lineage
from behemoth.app.machines import Machines
from behemoth.app.own_disk_news import tell_own_disk
from behemoth.app.snapshot import Snapshot, snapshot
from behemoth.app.start_run import RunPlace, begin_term, claim
from behemoth.app.summary import DrainTable, Summary, summarize
from behemoth.base.clock import WallClock
from behemoth.base.errors import Invalid
from behemoth.base.ids import Epoch, Step
from behemoth.fleet.server import Fleet
from behemoth.fleet.settings import FleetSettings
from behemoth.fleet.tokens import Tokens
from behemoth.ports import SavesTo
from behemoth.reconcile.loop import Loop
from behemoth.spec.drill import Fault
from behemoth.spec.recovery import BEAT_INTERVAL
from behemoth.spec.run import TrainingRun
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Asked, CommitsFound, Evidence, RunOpened, TermBegan
from behemoth.state.observation import Observation
from behemoth.storage.open import open_store
from behemoth.wiring.address import own_address
from behemoth.wiring.engine import WAITING, Engine, chosen_nodes, open_runtime
from behemoth.wiring.posting import post
from behemoth.wiring.second_store import fetching, open_second, settle_second
from behemoth.wiring.settling import clean_up, settle, vet

BEATS_PER_LIMIT = 5
"""Beats that fit into the heartbeat limit at least, so that one lost beat is never a lost node."""
TICK_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What the operator asked for. `engine` is a Ray of our own, plain processes, or a Ray at `ray_address`."""

    run: TrainingRun
    directory: Path
    faults: Sequence[Fault]
    engine: Engine = "embedded-ray"
    ray_address: str = ""
    on_event: Callable[[Event], None]
    on_phase: Callable[[str], None]
    """Told what is being waited for before the first event and after the last."""


class LocalRun:
    """One `behemoth run`. `run` is called once; the other methods on the same event loop while it runs."""

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._loop: Loop | None = None
        self._fleet: Fleet | None = None
        self._clock = WallClock()
        self._num_interrupts = 0
        self._is_over = False
        self._stop_reading = threading.Event()
        self._work: asyncio.Task[Observation] | None = None

    async def run(self) -> Summary:
        """Until the run is closed or stopped. Raises Behemoth's errors for what prevents a start or breaks the loop;
        whatever happens, no process is left and the directory can be resumed."""
        request = self._request
        place = await asyncio.to_thread(claim, request.run, request.directory, vet=vet)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(place.directory.close)
            journal = JournalFile(place.directory.journal)
            history = read_history(journal.open())
            stack.callback(journal.close)
            store = open_store(place.store_url)
            stack.callback(store.close)
            former = history.observation
            self._clock = WallClock(not_before_us=former.now_us if former is not None else 0)
            events = EventLog(place.directory.events, clock=self._clock, listener=request.on_event)
            events.open()
            stack.callback(events.close)
            second = open_second(request.run, place, store, events, clock=self._clock, stack=stack)
            if second is not None:
                rejected = former.rejected if former is not None else ()
                await asyncio.to_thread(second.fetch, rejected, fetching(request.on_phase))
            await asyncio.to_thread(settle, place, store, former)
            drainer = None
            if second is not None:
                drainer = await asyncio.to_thread(settle_second, place, second)
                stack.push_async_callback(asyncio.to_thread, second.close)
            history = await self._lead(place, store, journal, history, events, drainer)
            self._is_over = True
            await asyncio.to_thread(clean_up, place, store, history.observation)
            drained = None if second is None else await self._finish(second, store, history)
            request.on_phase("reading the newest checkpoint back")
            name, now_us = request.run.name, self._clock.now_us()
            cancelled = self._stop_reading.is_set
            summary = await asyncio.to_thread(
                summarize,
                name,
                history,
                store,
                url=place.store_url,
                now_us=now_us,
                cancelled=cancelled,
                drain=drained,
            )
            place.directory.write_summary(summary.document())
            return summary

    @property
    def is_over(self) -> bool:
        """Only the newest checkpoint is still read back, for the summary."""
        return self._is_over

    def interrupt(self) -> None:
        """The first time: save, then stop, resumable. The second time: stop at once. Once the run is over the first
        time changes nothing, and the second leaves the summary out."""
        self._num_interrupts += 1
        if self._is_over:
            if self._num_interrupts > 1:
                self._stop_reading.set()
            return
        if self._num_interrupts == 1 and self._loop is not None and self._work is not None:
            self._loop.tell(Asked(request="suspend"))
        elif self._work is not None:
            self._work.cancel()

    def snapshot(self) -> Snapshot | None:
        """None until the brain has decided for the first time."""
        loop, fleet = self._loop, self._fleet
        if loop is None or fleet is None or loop.observation is None or loop.decision is None:
            return None
        return snapshot(
            self._request.run.name,
            loop.observation,
            loop.decision.status,
            now_us=self._clock.now_us(),
            vitals=fleet.vitals(),
            connected=fleet.connected(),
        )

    async def _lead(
        self,
        place: RunPlace,
        store: SavesTo,
        journal: JournalFile,
        history: History,
        events: EventLog,
        drainer: Drainer | None,
    ) -> History:
        """One term: from the journal of the former one to the end of the loop."""
        request = self._request
        async with contextlib.AsyncExitStack() as stack:
            former = history.observation
            request.on_phase(WAITING[request.engine])
            runtime = await asyncio.to_thread(
                open_runtime, request.engine, request.run, ray_address=request.ray_address
            )
            machines = Machines(runtime, self._tell)
            stack.push_async_callback(asyncio.to_thread, machines.close)
            fleet = await self._open_fleet(place, events)
            stack.push_async_callback(self._close_fleet, fleet)
            desk = CheckpointDesk(
                store,
                run_name=request.run.name,
                run_uid=place.identity.run_uid,
                url=place.store_url,
                clock=self._clock,
                tell=self._tell,
                drains=drainer,
                unsure=unsure_writes(former),
                threads=request.run.checkpoint.threads,
            )
            stack.push_async_callback(asyncio.to_thread, desk.close)
            nodes = list(former.config.nodes) if former is not None else chosen_nodes(request.run, runtime.nodes())
            drills = self._open_drills(place, store, events)
            stack.push_async_callback(asyncio.to_thread, drills.close)
            drains = () if drainer is None else (drainer.witness,)
            body = LocalBody(
                fleet=fleet,
                machines=machines,
                desk=desk,
                agent=self._agent_program(place),
                domains=failure_domains(request.run, nodes),
                witnesses=(history.witness, events.witness, drills.witness, *drains),
            )
            self._loop = Loop(clock=self._clock, journal=journal, body=body, observation=former)
            machines.start()
            if former is None:
                config = brain_config(request.run, run_uid=place.identity.run_uid, nodes=nodes)
                self._loop.tell(RunOpened(config=config))
            else:
                body.resume(former)
            self._loop.tell(TermBegan(epoch=self._epoch))
            intact = await self._survey(desk, former, events)
            if not intact:  # the mount may have gone since the first look
                await asyncio.to_thread(require_lineage, store, former, url=place.store_url)
            has_begun = former is not None and former.attempt > 0  # what it has written is in its journal then
            others = () if has_begun else await asyncio.to_thread(desk.all_writes)
            self._loop.tell(CommitsFound(commits=tuple(intact), others=others))
            desk.clean(fleet.saves_in_flight)
            self._work = asyncio.create_task(self._loop.run(), name="brain")
            return replace(history, observation=await self._work)

    async def _survey(self, desk: CheckpointDesk, former: Observation | None, events: EventLog) -> Sequence[CommitRef]:
        """The checkpoints that the run may go on from; of the others a warning."""
        intact, bad = await asyncio.to_thread(desk.survey, former.rejected if former is not None else ())
        if former is None and intact:
            _require_within(self._request.run, intact[-1].step)
        going_on = f"from step {intact[-1].step}" if intact else "from the beginning"
        for commit in bad:
            events.warn("UnusableCheckpoint", f"{commit.error}; going on {going_on}")
        return intact

    async def _open_fleet(self, place: RunPlace, events: EventLog) -> Fleet:
        request = self._request
        recovery = request.run.recovery
        former = place.directory.term()
        is_local = request.engine != "joined-ray"
        host = "127.0.0.1" if is_local else "0.0.0.0"
        keeps_agents = recovery.coordinator_grace.total_seconds() > 0
        self._epoch = Epoch(1 if former is None else former.epoch + 1)
        tokens = Tokens(place.directory.secret())
        setup = agent_setup(
            request.run,
            store_url=place.store_url,
            log_dir=str(place.directory.logs.absolute()),
            peer_key=tokens.peer_key(),
        )
        settings = FleetSettings(
            run_uid=place.identity.run_uid,
            epoch=self._epoch,
            setup=setup,
            beat_interval_us=to_us(min(BEAT_INTERVAL, recovery.heartbeat_limit / BEATS_PER_LIMIT)),
            tick_interval_us=round(TICK_S * 1e6),
            reconnect_us=to_us(recovery.heartbeat_limit) if keeps_agents else 0,
        )
        disk = setup.local_disk
        on_disk = partial(tell_own_disk, events, disk.path if disk is not None else "")
        self._fleet = Fleet(settings, tokens=tokens, clock=self._clock, sink=self._tell, on_disk=on_disk)
        port = await self._fleet.listen(host, former.port if former is not None and keeps_agents else 0)
        begin_term(place.directory, self._epoch, port)
        self._address = f"{'127.0.0.1' if is_local else own_address()}:{port}"
        return self._fleet

    async def _close_fleet(self, fleet: Fleet) -> None:
        """Agents of a run that has succeeded leave nothing behind; one that was stopped may be taken up again."""
        observation = self._loop.observation if self._loop is not None else None
        is_run_over = observation is not None and observation.outcome == "succeeded"
        await fleet.close("the run is over on this coordinator", is_run_over=is_run_over)

    async def _finish(self, second: SecondStore, store: SavesTo, history: History) -> DrainTable:
        """A run is not over before its last checkpoint is in the second store."""
        committed = () if history.observation is None else history.observation.commits
        last = await asyncio.to_thread(last_commit, store, committed)
        if last is not None:
            self._request.on_phase(f"draining the checkpoint of step {last.step}")
        is_required = self._request.run.checkpoint.durable == "drain"
        cancelled = self._stop_reading.is_set
        return await asyncio.to_thread(second.finish, last, is_required=is_required, cancelled=cancelled)

    def _open_drills(self, place: RunPlace, store: SavesTo, events: EventLog) -> Drills:
        running = asyncio.get_running_loop()
        drills = Drills(
            self._request.faults,
            run_uid=place.identity.run_uid,
            store=store,
            ledger=place.directory.path / "drills.jsonl",
            announce=lambda message, node: post(running, lambda: events.warn("Drill", message, node=node)),
        )
        drills.open()
        return drills

    def _agent_program(self, place: RunPlace) -> AgentProgram:
        return AgentProgram(
            argv=(sys.executable, "-m", "behemoth.wiring.agent"),
            env={COORDINATOR_VARIABLE: self._address, RUN_UID_VARIABLE: place.identity.run_uid},
            log_dir=place.directory.logs.absolute(),
        )

    def _tell(self, evidence: Evidence) -> None:
        """Evidence before the loop stands cannot be: agents are ordered by the loop."""
        if self._loop is not None:
            self._loop.tell(evidence)


def _require_within(run: TrainingRun, newest: Step) -> None:
    """A store that was taken over may be further than this run goes: it would end at once, and have trained nothing."""
    if newest > run.workload.steps:
        raise Invalid(
            f"spec.workload.steps: expected at least {newest}, the step of the store's newest checkpoint, got "
            f"{run.workload.steps}",
            hint="raise it, or name another store",
            code="beyond-the-end",
        )
