"""A coordinator without a brain, and real agents: what the agent's tests play on. Every wait is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from behemoth.base.ids import Attempt, Epoch, NodeId, RunUid, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.receipt import Receipt
from behemoth.state.config import HangFloors
from behemoth.state.fence import Fence
from behemoth.storage.open import open_store
from behemoth.wire import frames
from behemoth.wire.commands import AbortSave, CommitSeen, GoAhead, PeerPlace, RestoreFrom, SaveAt, StartGang, Welcome
from behemoth.wire.reports import Hello, ReceiptBatch, Report, SaveMissed, SaveReached
from behemoth.wire.setup import CommandWork, EntrypointWork, Setup

LIMIT_S = 150.0
"""Of any wait: it ends a hang and judges no speed, shortly before pytest would, and can tell what was heard."""
_LEAD_STEPS = 60
_GO_ON = "go-on"
RUN = RunUid("run-1")
PEER_KEY = "p" * 64
TESTS = Path(__file__).parent.parent
_REPORTS = msgspec.msgpack.Decoder(Report)
R = TypeVar("R")


class Stage:
    """Nodes n0, n1, ...; `heard` holds (node, report) in order of arrival."""

    def __init__(self, folder: Path, setup: Setup, *, beat_s: float) -> None:
        self.folder = folder
        self.setup = setup
        self.heard: list[tuple[NodeId, Report]] = []
        self.agents: dict[NodeId, subprocess.Popen[bytes]] = {}
        self.lifelines: dict[NodeId, int] = {}
        self.epoch = Epoch(1)
        self._beat_us = int(beat_s * 1e6)
        self._writers: dict[NodeId, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._news = asyncio.Condition()
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def go_away(self) -> None:
        """The coordinator dies: no listener, no connection."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers.values():
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)

    def start_agent(self, index: int) -> NodeId:
        node = NodeId(f"n{index}")
        if node in self.agents:
            self.agents[node].wait(LIMIT_S)
        reading, writing = os.pipe()
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))),
            "BEHEMOTH_COORDINATOR": f"127.0.0.1:{self.port}",
            "BEHEMOTH_RUN_UID": RUN,
            "BEHEMOTH_NODE": node,
            "BEHEMOTH_INCARNATION": "1",
            "BEHEMOTH_TOKEN": "a-token",
            "BEHEMOTH_LIFELINE_FD": str(reading),
        }
        log = (self.folder / f"{node}.log").open("ab")
        with log:
            self.agents[node] = subprocess.Popen(
                [sys.executable, "-m", "behemoth.wiring.agent"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,),
                start_new_session=True,
            )
        os.close(reading)
        self.lifelines[node] = writing
        return node

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for node, process in self.agents.items():
            self.cut_lifeline(node)
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(LIMIT_S)

    def cut_lifeline(self, node: NodeId) -> None:
        with contextlib.suppress(KeyError):
            os.close(self.lifelines.pop(node))

    async def replace_agents(self, *indexes: int) -> None:
        """These nodes lose their agents with all memory at once, and come back empty."""
        names = [NodeId(f"n{index}") for index in indexes]
        below = {pid for name in names for pid in descendants(self.agents[name].pid)}
        for name in names:
            kill(self.agents[name].pid)
        await gone(below)
        for index, name in zip(indexes, names, strict=True):
            since = len(self.heard)
            self.cut_lifeline(name)
            self.start_agent(index)
            await self.wait_for(Hello, _of(name), since=since)

    # Talking

    def send(self, command: object, *nodes: NodeId) -> None:
        frame = frames.encode_frame(command)
        for node in nodes or list(self._writers):
            self._writers[node].write(frame)

    def fence(self, attempt: int, *, epoch: int | None = None) -> Fence:
        return Fence(run_uid=RUN, epoch=Epoch(self.epoch if epoch is None else epoch), attempt=Attempt(attempt))

    def start_gang(
        self, attempt: int, *, restore: RestoreFrom | None = None, dump_stacks: bool = False, record_bytes: int = 0
    ) -> None:
        hellos = {node: report for node, report in self.heard if isinstance(report, Hello)}
        first, nodes = hellos[NodeId("n0")], tuple(sorted(self.agents))
        self.send(
            StartGang(
                fence=self.fence(attempt),
                nodes=nodes,
                master_host=first.host,
                master_port=first.rendezvous_port,
                restore=restore,
                dump_stacks=dump_stacks,
                peers=tuple(
                    PeerPlace(
                        host=hellos[node].host, port=hellos[node].peer_port, domain=order // self.setup.peer_stride
                    )
                    for order, node in enumerate(nodes)
                ),
                record_bytes=record_bytes,
            )
        )

    async def wait_for(
        self, kind: type[R], check: Callable[[R], bool] = lambda _: True, *, since: int = 0, limit_s: float = LIMIT_S
    ) -> R:
        """The first report of this kind that passes the check, among those heard since `since`."""

        def found(heard: Sequence[tuple[NodeId, Report]]) -> R | None:
            return next((report for _, report in heard if isinstance(report, kind) and check(report)), None)

        return await self.wait_until(found, since=since, limit_s=limit_s, what=kind.__name__)

    async def wait_until(
        self,
        found: Callable[[Sequence[tuple[NodeId, Report]]], R | None],
        *,
        since: int = 0,
        limit_s: float = LIMIT_S,
        what: str = "answer of all",
    ) -> R:
        """What `found` makes of all that was heard since `since`, once it makes something of it."""
        async with self._news:
            try:
                async with asyncio.timeout(limit_s):
                    await self._news.wait_for(lambda: found(self.heard[since:]) is not None)
            except TimeoutError:
                raise AssertionError(f"no {what} within {limit_s} s\n{self.story()}") from None
        answer = found(self.heard[since:])
        assert answer is not None
        return answer

    def let_go_on(self) -> None:
        """Programs that hold at a step (`programs.hold`) hold no longer."""
        (self.folder / _GO_ON).touch()

    async def save(self, step: int, write_id: str, attempt: int, *, is_last: bool = False) -> RestoreFrom:
        """A whole save from its announcement to its commit."""
        since = len(self.heard)
        saved = await self.announce(step, write_id, attempt, is_last=is_last)
        if is_last:
            self.send(GoAhead(fence=self.fence(attempt), write_id=saved.write_id))
        self.commit(await self.receipts(saved.write_id, since=since), saved.step, attempt)
        self.send(CommitSeen(fence=self.fence(attempt), step=saved.step, write_id=saved.write_id))
        return saved

    async def announce(self, step: int, write_id: str, attempt: int, *, is_last: bool = False) -> RestoreFrom:
        """A save that every rank knows of before its step. When a rank is past `step` already, which a busy machine
        may do to any test, a later one is chosen, as a coordinator does: the save that came of it."""
        lead_steps = _LEAD_STEPS
        save = RestoreFrom(step=Step(step), write_id=WriteId(write_id))
        while (passed := await self._passed_at(save, attempt, is_last=is_last)) is not None:
            later = WriteId(f"{write_id}{lead_steps}")
            save, lead_steps = RestoreFrom(step=Step(passed + lead_steps), write_id=later), 2 * lead_steps
        return save

    async def _passed_at(self, save: RestoreFrom, attempt: int, *, is_last: bool) -> Step | None:
        """The step at which a rank stood already, after which the save was given up; None when all ranks know of it."""
        since, fence = len(self.heard), self.fence(attempt)
        self.send(SaveAt(fence=fence, step=save.step, write_id=save.write_id, is_last=is_last))
        told = await self.wait_until(
            lambda heard: _armed_or_missed(heard, save.write_id, len(self.agents)), since=since
        )
        answer = next((report for report in told if isinstance(report, SaveMissed)), None)
        if answer is None:
            return None
        self.send(AbortSave(fence=fence, write_id=save.write_id, reason=f"a rank stood at step {answer.step} already"))
        return answer.step

    async def receipts(self, write_id: WriteId, *, since: int = 0) -> list[ReceiptBatch]:
        """Of a write, one batch of every node."""

        def batches(heard: Sequence[tuple[NodeId, Report]]) -> list[ReceiptBatch] | None:
            found = {
                node: report
                for node, report in heard
                if isinstance(report, ReceiptBatch) and report.write_id == write_id
            }
            return list(found.values()) if len(found) == len(self.agents) else None

        return await self.wait_until(batches, since=since)

    def commit(self, batches: Sequence[ReceiptBatch], step: int, attempt: int) -> None:
        (layout,) = (batch.layout for batch in batches if batch.layout is not None)
        assert all(len(batch.receipts) == batch.num_ranks for batch in batches)
        store = open_store(self.setup.store_url)
        take(store, Owner.of_run(RUN, name=self.setup.run_name, directory=str(self.folder)), url=store.root)
        commit(
            store,
            Candidate(run=self.setup.run_name, step=Step(step), write_id=batches[0].write_id, attempt=Attempt(attempt)),
            Layout.decode(layout),
            [Receipt.decode(receipt) for batch in batches for receipt in batch.receipts],
            previous=None,
        )

    def log(self, attempt: int, rank: int) -> str:
        path = self.folder / "logs" / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"
        return path.read_text() if path.exists() else ""

    async def logged(self, attempt: int, rank: int, text: str) -> str:
        """The rank's log, as soon as it holds `text`."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.log(attempt, rank):
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.log(attempt, rank)}\n{self.story()}"
            await asyncio.sleep(0.01)
        return self.log(attempt, rank)

    def story(self) -> str:
        """What happened, for a failed assertion."""
        told = "\n".join(f"{node} {report}"[:500] for node, report in self.heard[-12:])
        logs = "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("n*.log")))
        return f"{told}\n{logs}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            hello = frames.decode_body(_REPORTS, await frames.read_frame(reader))
            assert isinstance(hello, Hello)
            await self._note(hello.node, hello)
            welcome = Welcome(
                minor=frames.PROTOCOL_MINOR, epoch=self.epoch, beat_interval_us=self._beat_us, setup=self.setup
            )
            writer.write(frames.encode_frame(welcome))
            self._writers[hello.node] = writer
            while True:
                await self._note(hello.node, frames.decode_body(_REPORTS, await frames.read_frame(reader)))
        writer.close()

    async def _note(self, node: NodeId, report: Report) -> None:
        async with self._news:
            self.heard.append((node, report))
            self._news.notify_all()


def _armed_or_missed(
    heard: Sequence[tuple[NodeId, Report]], write_id: WriteId, num_nodes: int
) -> list[SaveReached | SaveMissed] | None:
    """What was said of a write, as soon as one node missed it or all know of it."""
    told = [
        report for _, report in heard if isinstance(report, SaveReached | SaveMissed) and report.write_id == write_id
    ]
    armed = [report for report in told if isinstance(report, SaveReached) and report.stage == "armed"]
    return told if len(armed) == num_nodes or len(told) > len(armed) else None


def setup_for(
    folder: Path,
    program: str = "train",
    *,
    ranks: int = 2,
    total_steps: int = 1_000_000,
    argv: tuple[str, ...] = (),
    preload: tuple[str, ...] = (),
    grace_us: int | None = 0,
    max_log_bytes: int = 1 << 20,
    nodes: int = 1,
    peer_copies: int = 0,
    peer_rate: int | None = None,
    **args: int,
) -> Setup:
    """A run of `ranks` on each of `nodes`, whose last step is out of reach unless it is said: at 5 ms a step, a test
    on a busy machine would meet it."""
    second_us = 1_000_000
    work = CommandWork(argv=argv) if argv else EntrypointWork(entrypoint=f"agent.programs:{program}", preload=preload)
    return Setup(
        work=work,
        args=dict(args),
        environment={"SECRET_OF_USER": "s3cr3t", "GO_ON": str(folder / _GO_ON)},
        total_steps=Step(total_steps),
        mesh={"dp": nodes * ranks, "edp": nodes * ranks},
        ranks_per_node=ranks,
        store_url=str(folder / "checkpoints"),
        run_name="toy",
        log_dir=str(folder / "logs"),
        io_threads=2,
        hang_floors=HangFloors(
            start_us=10 * second_us,
            restore_us=10 * second_us,
            first_step_us=10 * second_us,
            step_us=10 * second_us,
            eval_us=10 * second_us,
            save_us=10 * second_us,
        ),
        coordinator_grace_us=grace_us,
        max_log_bytes=max_log_bytes,
        peer_key=PEER_KEY,
        peer_copies=peer_copies,
        peer_rate=peer_rate,
    )


def _of(node: NodeId) -> Callable[[Hello], bool]:
    return lambda hello: hello.node == node


@asynccontextmanager
async def stage(
    folder: Path, setup: Setup | None = None, *, num_agents: int = 1, beat_s: float = 0.05
) -> AsyncIterator[Stage]:
    """A coordinator and welcomed agents; everything ends with the block."""
    here = Stage(folder, setup or setup_for(folder), beat_s=beat_s)
    await here.listen()
    try:
        for index in range(num_agents):
            node = here.start_agent(index)
            await here.wait_for(Hello, _of(node))
        yield here
    finally:
        here.close()


def open_memory(pid: int, name: str) -> int | None:
    """A descriptor of the anonymous memory `name` that a process has open; it may be closing others meanwhile."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if f"{os.readlink(entry)} ".startswith(f"/memfd:{name} "):
                return os.open(entry, os.O_RDWR)
    return None


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                child = int(path.parent.name)
                found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of `pids` that still run; zombies do not."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                running.add(pid)
    return running


async def gone(pids: set[int]) -> None:
    """Until none of `pids` runs. Raises AssertionError naming those that are left."""
    deadline = time.monotonic() + LIMIT_S
    while left := alive(pids):
        assert time.monotonic() < deadline, f"still there: {left}"
        await asyncio.sleep(0.01)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
