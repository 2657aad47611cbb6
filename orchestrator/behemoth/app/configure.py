"""Turns the run file into the configurations of the core and of the agents, in the units that they compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from functools import partial

from behemoth.base.ids import NodeId, RunUid
from behemoth.policy.shared_reads import are_shared
from behemoth.spec.checkpoint import EverySteps
from behemoth.spec.recovery import HangFloor
from behemoth.spec.run import TrainingRun
from behemoth.spec.workload import CommandWorkload, PythonWorkload
from behemoth.state.config import Cadence, HangFloors, RunConfig
from behemoth.storage.open import is_s3, is_served
from behemoth.wire.setup import CommandWork, EntrypointWork, LocalDisk, Setup, ShareReads

SETTLE = timedelta(milliseconds=100)
"""How long to wait for further signs of one failure: the peers of a lost node fail within milliseconds, and its closed
socket is seen about as fast."""
MAX_LOG_BYTES = 64 << 20
"""Per rank and attempt: far beyond what a person reads, and 32,000 ranks' logs still fit their nodes' disks."""


def brain_config(run: TrainingRun, *, run_uid: RunUid, nodes: Sequence[NodeId]) -> RunConfig:
    """`nodes` in placement order, gang and spares alike."""
    recovery = run.recovery
    return RunConfig(
        run_uid=run_uid,
        nodes=tuple(nodes),
        num_slots=run.nodes.count,
        ranks_per_node=run.nodes.gpus_per_node,
        total_steps=run.workload.steps,
        cadence=_cadence(run),
        keep_last=run.checkpoint.retention.keep_last,
        keep_every_steps=run.checkpoint.retention.every_steps,
        keep_hourly=run.checkpoint.retention.hourly,
        keep_daily=run.checkpoint.retention.daily,
        heartbeat_limit_us=to_us(recovery.heartbeat_limit),
        hang_floors=_floors(recovery.hang_floor),
        settle_us=to_us(SETTLE),
        max_failures=recovery.max_failures_without_progress,
        node_wait_us=to_us(recovery.node_wait),
        rejoin_us=to_us(recovery.coordinator_grace),
        save_limit_us=to_us(run.checkpoint.save_limit),
    )


def agent_setup(run: TrainingRun, *, store_url: str, log_dir: str, peer_key: str) -> Setup:
    """What agents are told at their handshake."""
    work = run.workload
    return Setup(
        work=_work(work),
        args=dict(work.args) if isinstance(work, PythonWorkload) else {},
        environment=dict(work.environment),
        total_steps=work.steps,
        mesh={axis.name: getattr(run.mesh, axis.name) for axis in fields(run.mesh)},
        ranks_per_node=run.nodes.gpus_per_node,
        store_url=store_url,
        sharding="box" if is_s3(store_url) else "array",
        run_name=run.name,
        log_dir=log_dir,
        io_threads=run.checkpoint.threads,
        hang_floors=_floors(run.recovery.hang_floor),
        coordinator_grace_us=to_us(run.recovery.coordinator_grace),
        max_log_bytes=MAX_LOG_BYTES,
        peer_key=peer_key,
        peer_copies=run.checkpoint.peer_copies,
        staging_budget=run.checkpoint.staging_budget,
        peer_stride=run.nodes.failure_domain,
        peer_rate=run.checkpoint.peer_rate,
        share_reads=_share_reads(run),
        local_disk=_local_disk(run),
    )


def failure_domains(run: TrainingRun, nodes: Sequence[NodeId]) -> dict[NodeId, int]:
    """Number of the failure domain of each node; `nodes` in placement order, gang and spares alike."""
    return {node: order // run.nodes.failure_domain for order, node in enumerate(nodes)}


def reads_are_shared(run: TrainingRun, store_url: str) -> bool:
    """Whether nodes of the run read a checkpoint together, if they have a directory mounted as this machine has."""
    return are_shared(_share_reads(run), num_nodes=run.nodes.count, is_served=partial(is_served, store_url))


def to_us(duration: timedelta) -> int:
    """Whole microseconds."""
    return duration // timedelta(microseconds=1)


def _share_reads(run: TrainingRun) -> ShareReads:
    match run.checkpoint.share_reads:
        case "always":
            return "always"
        case "never":
            return "never"
        case _:
            return "auto"


def _local_disk(run: TrainingRun) -> LocalDisk | None:
    disk = run.checkpoint.local_disk
    if disk is None:
        return None
    return LocalDisk(path=disk.path, rate_bytes_per_s=disk.rate, budget_bytes=disk.budget)


def _cadence(run: TrainingRun) -> Cadence:
    every = run.checkpoint.every
    if isinstance(every, EverySteps):
        return Cadence(steps=every.steps)
    return Cadence(interval_us=to_us(every.interval))


def _floors(floor: HangFloor) -> HangFloors:
    return HangFloors(
        start_us=to_us(floor.start),
        restore_us=to_us(floor.restore),
        first_step_us=to_us(floor.first_step),
        step_us=to_us(floor.step),
        eval_us=to_us(floor.eval),
        save_us=to_us(floor.save),
    )


def _work(work: PythonWorkload | CommandWorkload) -> EntrypointWork | CommandWork:
    match work:
        case PythonWorkload(entrypoint=entrypoint, preload=preload):
            return EntrypointWork(entrypoint=entrypoint, preload=tuple(preload))
        case CommandWorkload(command=command):
            return CommandWork(argv=tuple(command))
