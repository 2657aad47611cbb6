"""What stays the same for the life of a run, as the coordinator tells it to every agent that it lets in.

Values only. Neighbours: `commands`, whose Welcome carries it, and `app.configure`, which makes it from the spec.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from behemoth.base.hidden import repr_without
from behemoth.base.ids import Step
from behemoth.state.config import HangFloors
from behemoth.wire.message import Message

ShareReads: TypeAlias = Literal["auto", "always", "never"]
"""Whether nodes read a checkpoint together; auto: where all of them ask the same servers."""


class EntrypointWork(Message, frozen=True, kw_only=True):
    """A python function that the fork server calls in every worker; `preload` is imported before any fork."""

    entrypoint: str
    preload: tuple[str, ...]


class CommandWork(Message, frozen=True, kw_only=True):
    """A program that is executed anew in every worker."""

    argv: tuple[str, ...]


class LocalDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of each node, to which it copies what its ranks have committed. `budget_bytes`: most of one node there."""

    path: str
    rate_bytes_per_s: int | None = None
    budget_bytes: int | None = None


class Setup(Message, frozen=True, kw_only=True):
    """What stays the same for the life of a run. `environment` may hold secrets: it is never logged."""

    work: EntrypointWork | CommandWork
    args: dict[str, bool | int | float | str]
    environment: dict[str, str]
    total_steps: Step
    mesh: dict[str, int]
    ranks_per_node: int
    store_url: str
    sharding: Literal["array", "box"] = "array"
    """How the store's layouts are sharded (`Layout.sharding`)."""
    run_name: str
    log_dir: str
    io_threads: int
    hang_floors: HangFloors
    coordinator_grace_us: int | None
    """How long workers go on without a coordinator; None: for ever."""
    max_log_bytes: int
    """Per rank and attempt; older output beyond it is dropped, never the newest."""
    peer_key: str = ""
    """What nodes of the run prove themselves to each other with; a secret. Empty: they do not talk."""
    peer_copies: int = 0
    """How many nodes hold a copy of each node's staged checkpoint (`behemoth.policy.peers`)."""
    staging_budget: int | None = None
    """Most bytes of staging memory on a node, copies included."""
    peer_stride: int = 1
    """Nodes of a failure domain."""
    peer_rate: int | None = None
    """Most bytes a second that a node takes for copies."""
    share_reads: ShareReads = "never"
    """Whether each part of a checkpoint is read from the store by one node and passed on to the others."""
    local_disk: LocalDisk | None = None

    def __repr__(self) -> str:
        return repr_without(self, "environment", "peer_key")
