"""Whatever is printed with a message, a log line or a trace of Python, its secrets are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from behemoth.agent.forkwire import Spawn
from behemoth.agent.storewire import PeerService
from behemoth.app.batches import messages as batches
from behemoth.app.body import AgentProgram
from behemoth.app.machines import StartOrder
from behemoth.base.ids import Attempt, Epoch, NodeId, RunUid, Step
from behemoth.rayrt import frames as ray
from behemoth.rayrt.kept import KeptSpec
from behemoth.spec.workload import CommandWorkload, PythonWorkload
from behemoth.state.config import HangFloors
from behemoth.wire.commands import Welcome
from behemoth.wire.frames import encode_frame
from behemoth.wire.reports import Hello
from behemoth.wire.setup import CommandWork, Setup

NODE, UID = NodeId("node-7"), RunUid("run-uid")
ENVIRONMENT = {"AWS_SECRET_ACCESS_KEY": "sesame"}
SETUP = Setup(
    work=CommandWork(argv=("train",)),
    args={},
    environment=ENVIRONMENT,
    total_steps=Step(9),
    mesh={"dp": 2},
    ranks_per_node=1,
    store_url="s3://bucket/run",
    run_name="toy",
    log_dir="logs",
    io_threads=1,
    hang_floors=HangFloors(start_us=1, restore_us=1, first_step_us=1, step_us=1, save_us=1, eval_us=1),
    coordinator_grace_us=None,
    max_log_bytes=1,
    peer_key="sesame",
)
HELLO = Hello(
    major=1,
    minor=0,
    run_uid=UID,
    node=NODE,
    incarnation=1,
    token="sesame",
    host="here",
    rendezvous_port=1,
    attempt=Attempt(0),
)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (SETUP, "store_url='s3://bucket/run'"),
        (Welcome(minor=0, epoch=Epoch(1), beat_interval_us=1, setup=SETUP), "beat_interval_us=1"),
        (HELLO, "node='node-7'"),
        (PeerService(run_uid=UID, node=NODE, key="sesame", rate_bytes_per_s=3), "rate_bytes_per_s=3"),
        (Spawn(attempt=Attempt(1), local_rank=2, environment=ENVIRONMENT), "local_rank=2"),
        (batches.Hello(node="node-7", incarnation=1, token="sesame"), "incarnation=1"),
        (ray.Start(node="node-7", incarnation=1, argv=["train"], env=ENVIRONMENT), "argv=['train']"),
        (KeptSpec(argv=["train"], env=ENVIRONMENT), "argv=['train']"),
        (StartOrder(node=NODE, incarnation=1, argv=("train",), env=ENVIRONMENT), "argv=('train',)"),
        (AgentProgram(argv=("train",), env=ENVIRONMENT, log_dir=Path("logs")), "argv=('train',)"),
        (CommandWorkload(command=("train",), steps=Step(1), environment=ENVIRONMENT), "command=('train',)"),
        (PythonWorkload(entrypoint="a:b", steps=Step(1), environment=ENVIRONMENT), "entrypoint='a:b'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_secret_is_no_part_of_what_is_printed_of_its_message(value: object, told: str) -> None:
    assert "sesame" not in repr(value)
    assert "sesame" not in f"{[value]} {value}"
    assert told in repr(value)


def test_a_secret_still_goes_over_the_wire_and_counts_for_equality() -> None:
    assert b"sesame" in bytes(encode_frame(HELLO))
    assert msgspec.structs.replace(HELLO, token="other") != HELLO
    order = StartOrder(node=NODE, incarnation=1, argv=("train",), env=ENVIRONMENT)
    assert dataclasses.replace(order, env={}) != order
