"""Checkpoints, as a run file says them: where they go, how often, in how many copies, and what they may take.

Neighbours: `stores` spells a store and says what is kept there; `run` holds this section.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, TypeAlias

from behemoth.spec.field import About, Choice, Integer, OneOf, duration, rate_limit, require_ranges, section, size
from behemoth.spec.stores import STORE, Drain, LocalDisk, Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class EverySteps:
    """A checkpoint whenever the number of completed steps is a multiple of this."""

    steps: Annotated[int, About(doc="Save at multiples of this many steps.", kind=Integer(minimum=1))]

    def __post_init__(self) -> None:
        require_ranges(self, name="every")


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryInterval:
    """A checkpoint whenever this much time has passed since the last one."""

    interval: Annotated[
        timedelta,
        About(
            doc="Save when this much time has passed since the last save.", kind=duration(minimum=timedelta(seconds=1))
        ),
    ]


Every: TypeAlias = EverySteps | EveryInterval

_NOT_DURABLE = "a node's own disk is lost with its node: it makes restores fast, and is no place to keep anything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where, how often and how long."""

    store: Annotated[
        str | None,
        About(
            doc="Where checkpoints lie: a path or a file:// URL, relative to the folder in which the run is first "
            "started, or s3://BUCKET/PREFIX. The folder `checkpoints` in the run's own directory when left out.",
            kind=STORE,
        ),
    ] = None
    drain: Annotated[
        Drain | None,
        About(
            doc="A second store, to which a process of its own copies checkpoints in the background, and from which "
            "they come back when `store` has lost them.",
            kind=section(Drain),
        ),
    ] = None
    durable: Annotated[
        str,
        About(
            doc="The store in which the last checkpoint of a run must be, or the run is not finished. Saves commit in "
            "`store` either way. Never `local_disk`, which is lost with its node.",
            kind=Choice(names=("store", "drain"), refused={"local_disk": _NOT_DURABLE}),
        ),
    ] = "store"
    every: Annotated[
        Every,
        About(
            doc="How often to save. The default costs 2.5 minutes of lost work per fault on average, which at the "
            "fault rate of Llama 3's training leaves 97% useful time within reach.",
            kind=OneOf(sections=(section(EverySteps), section(EveryInterval))),
        ),
    ] = EveryInterval(interval=timedelta(minutes=5))
    retention: Annotated[
        Retention, About(doc="Which checkpoints are kept, besides those that are pinned.", kind=section(Retention))
    ] = Retention()  # noqa: RUF009 - frozen
    threads: Annotated[
        int,
        About(
            doc="Threads per node that compute while checkpoints are written, read and checked; for each some more may "
            "wait for a disk or a network.",
            kind=Integer(minimum=1, maximum=256),
        ),
    ] = 2
    save_limit: Annotated[
        timedelta,
        About(
            doc="A save that is not committed after this long is given up; training goes on.",
            kind=duration(minimum=timedelta(seconds=1)),
        ),
    ] = timedelta(minutes=10)
    staging_budget: Annotated[
        int | None,
        About(
            doc="Most memory per node for staged checkpoints, copies of other nodes' included: two generations of what "
            "its ranks save, and of what it holds for others. A program that declares more is refused, with numbers.",
            kind=size(),
        ),
    ] = None
    peer_copies: Annotated[
        int,
        About(
            doc="Copies of each node's newest committed checkpoint in the memory of other nodes, each in another "
            "failure domain. A node that is lost then costs no read from the store. Each copy takes as much memory on "
            "another node as the original does: two generations of what is staged.",
            kind=Integer(minimum=0, maximum=8),
        ),
    ] = 0
    peer_rate: Annotated[
        int | None,
        About(
            doc="Most bytes a second that a node takes for the copies that it holds; no limit when left out. A restore "
            "is not limited by it.",
            kind=rate_limit(),
        ),
    ] = None
    local_disk: Annotated[
        LocalDisk | None,
        About(
            doc="A disk of each node, on which the newest committed checkpoint of its ranks lies too: a node that lost "
            "its memory gets it back from there. Never durable.",
            kind=section(LocalDisk),
        ),
    ] = None
    share_reads: Annotated[
        str,
        About(
            doc="Whether, at a restore, each part of a checkpoint is read from the store by one node, which passes it "
            "on to the others. auto: where all nodes ask the same servers, which is object storage, or a directory "
            "that a node has mounted from the network (nfs, lustre, gpfs and their like). The ranks of a node read "
            "together in any case.",
            kind=Choice(names=("auto", "always", "never")),
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        require_ranges(self, name="checkpoint")
