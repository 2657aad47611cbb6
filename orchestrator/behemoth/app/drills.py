"""Drills: faults that are injected into a run from outside, at the step that the run file names.

`fold` and `decide` never see a drill: it signals processes and flips bits as a broken machine would, and the run finds
out by itself. Each fault strikes once in the life of a run, over restarts of this process too: it is written down
before it strikes. Neighbour: `node_processes`, which finds the victims.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import assert_never

import msgspec

from behemoth.app import node_processes
from behemoth.base.decoding import UNDECODABLE
from behemoth.base.errors import BehemothError, Corrupt, Invalid, NotFound
from behemoth.base.ids import NodeId, Rank, RunUid, Slot
from behemoth.checkpoint.commit_log import latest, read_record
from behemoth.ports import ObjectInfo, ObjectStore, Part, WritesRanges
from behemoth.spec.drill import (
    CorruptNewestCheckpoint,
    Fault,
    FreezeNode,
    HangRank,
    KillRank,
    LoseNode,
    format_fault,
)
from behemoth.state.evidence import Evidence, Tick
from behemoth.state.observation import Observation

MAX_REPLACED_BYTES = 64 << 20
"""Largest object that is rewritten to flip a bit, in a store that takes objects whole only: it is held in memory."""

_log = logging.getLogger(__name__)


class _Struck(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the ledger."""

    fault: str
    format: int = 1


_STRUCK = msgspec.json.Decoder(_Struck)


class Drills:
    """Strikes when the gang has completed a fault's step and the node is there: a spare may still be starting.

    A witness of the loop; strikes happen on its own thread. `ledger` is the file of what has struck; `announce`
    is told each strike as a sentence, with its node.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        *,
        run_uid: RunUid,
        store: ObjectStore,
        ledger: Path,
        announce: Callable[[str, NodeId | None], None],
    ) -> None:
        self._run_uid = run_uid
        self._store = store
        self._ledger = ledger
        self._announce = announce
        self._faults = list(faults)
        self._pending: list[Fault] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drills")

    def open(self) -> None:
        """Reads which faults have struck already: each line of the ledger uses up one of the same wording. Raises
        Corrupt for a line that is none."""
        written = self._ledger.read_bytes() if self._ledger.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if len(whole) < len(written):  # cut off by a full disk or a crash: that fault did not strike
            os.truncate(self._ledger, len(whole))
        left = [self._struck(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        for fault in self._faults:
            sentence = format_fault(fault)
            if sentence in left:
                left.remove(sentence)
            else:
                self._pending.append(fault)

    def _struck(self, number: int, line: bytes) -> str:
        try:
            return _STRUCK.decode(line).fault
        except UNDECODABLE as error:
            raise Corrupt(
                f"{self._ledger}, line {number}: expected a fault that has struck, got {line[:80]!r}",
                hint="remove the line, or the file: a fault that it does not name strikes again",
                code="drills-rubbish",
            ) from error

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        if not self._pending or not isinstance(evidence, Tick) or evidence.progress is None:
            return
        if before is None or evidence.progress.attempt != after.attempt:
            return
        for fault in list(self._pending):
            if fault.step <= evidence.progress.step and _has_victim(fault, after):
                self._pending.remove(fault)
                self._thread.submit(self._strike, fault, after)

    def close(self) -> None:
        """Waits for a strike that is under way, and says which faults have found no occasion."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for fault in self._pending:
            self._announce(f"{format_fault(fault)}: has not struck: its step and its node were not seen together", None)

    def _strike(self, fault: Fault, observation: Observation) -> None:
        try:
            with self._ledger.open("a") as file:
                file.write(msgspec.json.encode(_Struck(fault=format_fault(fault))).decode() + "\n")
            self._announce(format_fault(fault), _struck_node(fault, observation))
            self._inflict(fault, observation)
        except (BehemothError, OSError) as error:
            self._announce(f"{format_fault(fault)}: did not strike: {error}", None)
            _log.warning("drill %s did not strike: %s", format_fault(fault), error)

    def _inflict(self, fault: Fault, observation: Observation) -> None:
        match fault:
            case KillRank(rank=rank):
                os.kill(self._worker(rank, observation), signal.SIGKILL)
            case HangRank(rank=rank):
                os.kill(self._worker(rank, observation), signal.SIGSTOP)
            case LoseNode(node=number):
                self._lose(_node(number, observation))
            case FreezeNode(node=number):
                agent = self._agent(_node(number, observation))
                _signal([agent, *node_processes.below(agent)], signal.SIGSTOP)
            case CorruptNewestCheckpoint():
                self._flip_a_bit()
            case _:
                assert_never(fault)

    def _lose(self, node: NodeId) -> None:
        """Kill the starters first: they would clean up after the agent, which a machine that lost power cannot do."""
        agent = self._agent(node)
        workers = node_processes.below(agent)
        _signal([*reversed(node_processes.starters_of(agent)), agent, *workers], signal.SIGKILL)

    def _flip_a_bit(self) -> None:
        newest = latest(self._store)
        if newest is None:
            raise NotFound("newest checkpoint: expected a commit, got none")
        listed = self._store.list(read_record(self._store, newest).prefix)
        victim = max(listed, key=lambda found: (found.size_bytes, found.key), default=None)
        if victim is None:
            raise NotFound(f"checkpoint of step {newest.step}: expected objects to flip a bit of, got none")
        middle = victim.size_bytes // 2
        if isinstance(self._store, WritesRanges):
            byte = bytearray(1)
            self._store.read_into(victim.key, offset_bytes=middle, into=byte)
            byte[0] ^= 1
            part = Part(offset_bytes=middle, buffers=[byte])
            self._store.write_parts(victim.key, size_bytes=victim.size_bytes, parts=[part])
        else:
            self._replace(victim, middle)

    def _replace(self, victim: ObjectInfo, flipped: int) -> None:
        """Flip the bit in a store that cannot overwrite a range: read the object, delete it, and create it again."""
        if victim.size_bytes > MAX_REPLACED_BYTES:
            raise Invalid(
                f"object {victim.key}: expected one of at most {MAX_REPLACED_BYTES} bytes to flip a bit of, got "
                f"{victim.size_bytes}"
            )
        data = bytearray(victim.size_bytes)
        self._store.read_into(victim.key, offset_bytes=0, into=data)
        data[flipped] ^= 1
        self._store.delete([victim.key])
        self._store.create(victim.key, data)

    def _agent(self, node: NodeId) -> int:
        pid = node_processes.agent_pid(self._run_uid, node)
        if pid is None:
            raise NotFound(f"node {node}: expected a live agent on this machine, got none")
        return pid

    def _worker(self, rank: Rank, observation: Observation) -> int:
        node = _node_of(rank, observation)
        pid = node_processes.worker_pid(node_processes.below(self._agent(node)), rank)
        if pid is None:
            raise NotFound(f"rank {rank}: expected a live worker on node {node}, got none")
        return pid


def _has_victim(fault: Fault, observation: Observation) -> bool:
    try:
        _struck_node(fault, observation)
    except NotFound:
        return False
    return True


def _struck_node(fault: Fault, observation: Observation) -> NodeId | None:
    match fault:
        case KillRank(rank=rank) | HangRank(rank=rank):
            return _node_of(rank, observation)
        case LoseNode(node=number) | FreezeNode(node=number):
            return _node(number, observation)
        case CorruptNewestCheckpoint():
            return None
        case _:
            assert_never(fault)


def _node_of(rank: Rank, observation: Observation) -> NodeId:
    return _holder(observation.config.slot_of(rank), observation)


def _holder(slot: Slot, observation: Observation) -> NodeId:
    node = observation.holders.get(slot)
    if node is None:
        raise NotFound(f"slot {slot}: expected a node to strike, got none")
    return node


def _node(number: int, observation: Observation) -> NodeId:
    """The node that holds slot `number`; numbers beyond the gang are those of the present spares, in placement order.
    Raises NotFound when there is none."""
    num_slots = observation.config.num_slots
    if number < num_slots:
        return _holder(Slot(number), observation)
    spares = sorted(observation.spares, key=observation.spares.__getitem__)
    if number - num_slots >= len(spares):
        raise NotFound(f"node {number}: expected a spare to strike, got {len(spares)} spares")
    return spares[number - num_slots]


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
