"""The run as one value: everything that a run file says, checked.

Each field carries its description, from which decoding, `behemoth explain`, the reference and the later CRD follow.
Rules between fields stand at the end. The neighbours are `behemoth.spec.decode`, which makes the value from text, and
`behemoth.spec.document`, which writes it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, TypeAlias

from behemoth.spec.drill import FAULT_EXPECTED, FAULT_PATTERN, Fault, format_fault, misaim, parse_fault
from behemoth.spec.field import (
    About,
    Choice,
    Integer,
    Listing,
    Notation,
    OneOf,
    Text,
    duration,
    require_ranges,
    section,
    size,
)
from behemoth.spec.mesh import Mesh, complete_axes
from behemoth.spec.model import Inventory, Model, ModelFile, NamedModel, misfits, named_inventory
from behemoth.spec.pipeline import Pipeline
from behemoth.spec.problem import InvalidRun, Problem
from behemoth.spec.recipe import Recipe
from behemoth.spec.stores import STORE, Drain, Retention
from behemoth.spec.workload import CommandWorkload, PythonWorkload, Workload

API_VERSION = "behemoth.dev/v1alpha1"
KIND = "TrainingRun"
NAME_PATTERN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""A DNS label (RFC 1123), since the name becomes that of a folder and of Kubernetes objects."""
MAX_NODES, MAX_RANKS_PER_NODE = 100_000, 64
BEAT_INTERVAL = timedelta(seconds=1)
"""How often an agent beats. A limit must allow one lost beat, so it lies above twice this."""


def suggest_name(text: str) -> str:
    """The nearest valid name, or nothing."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return name if re.fullmatch(NAME_PATTERN, name) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The machines that a run wants."""

    count: Annotated[int, About(doc="Nodes of the gang.", kind=Integer(minimum=1, maximum=MAX_NODES))]
    gpus_per_node: Annotated[
        int,
        About(
            doc="Ranks on each node, one per GPU (one per process without GPUs).",
            kind=Integer(minimum=1, maximum=MAX_RANKS_PER_NODE),
        ),
    ]
    spares: Annotated[
        int,
        About(
            doc="Nodes kept warm beside the gang to take the place of lost ones.",
            kind=Integer(minimum=0, maximum=100_000),
        ),
    ] = 0
    failure_domain: Annotated[
        int,
        About(
            doc="How many nodes that follow each other in placement order, spares included, may fail together: those "
            "of a rack, or of a power feed. Copies of a node's memory lie in other domains.",
            kind=Integer(minimum=1, maximum=100_000),
        ),
    ] = 1

    def __post_init__(self) -> None:
        require_ranges(self, name="nodes")

    @property
    def num_ranks(self) -> int:
        return self.count * self.gpus_per_node


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
            "`store` either way.",
            kind=Choice(names=("store", "drain")),
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
        About(doc="Threads per node that write, read and check checkpoints.", kind=Integer(minimum=1, maximum=256)),
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
            kind=size(),
        ),
    ] = None
    share_reads: Annotated[
        str,
        About(
            doc="Whether, at a restore, each part of a checkpoint is read from the store by one node, which passes it "
            "on to the others. auto: where the store is not a directory.",
            kind=Choice(names=("auto", "always", "never")),
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        require_ranges(self, name="checkpoint")


_FLOOR = duration(minimum=timedelta(seconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class HangFloor:
    """Least time without progress that may be called a hang, per phase that a rank declares."""

    start: Annotated[timedelta, About(doc="From the start of a worker until it has joined.", kind=_FLOOR)] = timedelta(
        minutes=2
    )
    restore: Annotated[timedelta, About(doc="While state is restored.", kind=_FLOOR)] = timedelta(minutes=10)
    first_step: Annotated[
        timedelta, About(doc="The first step of an attempt, from the restore on; it may compile.", kind=_FLOOR)
    ] = timedelta(minutes=5)
    step: Annotated[timedelta, About(doc="Any later step.", kind=_FLOOR)] = timedelta(minutes=1)
    eval: Annotated[timedelta, About(doc="An evaluation.", kind=_FLOOR)] = timedelta(minutes=30)
    save: Annotated[
        timedelta,
        About(
            doc="The blocking part of a save; and what a program still does after its last one, unless it declares "
            "a phase that may take longer.",
            kind=_FLOOR,
        ),
    ] = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Limits by which faults are told and recovery is given up."""

    heartbeat_limit: Annotated[
        timedelta,
        About(
            doc="A node that is silent for this long is lost. Agents beat five times within it, and at least once a "
            "second, so that a beat may go missing.",
            kind=duration(minimum=2 * BEAT_INTERVAL + timedelta(milliseconds=100)),
        ),
    ] = timedelta(seconds=2.5)
    hang_floor: Annotated[
        HangFloor,
        About(
            doc="A rank hangs when it makes no progress for 3 x the 99th percentile seen, but never before this long.",
            kind=section(HangFloor),
        ),
    ] = HangFloor()
    max_failures_without_progress: Annotated[
        int,
        About(
            doc="After this many failures of the same kind in a row without one more completed step, or three times "
            "as many of any kind, the run stops and says why. A checkpoint of another model stops it at once.",
            kind=Integer(minimum=1, maximum=1000),
        ),
    ] = 3
    node_wait: Annotated[
        timedelta,
        About(
            doc="How long a gang waits for a missing node before the run fails; for its first nodes at least "
            "as long as `hang_floor.start`.",
            kind=duration(),
        ),
    ] = timedelta(minutes=10)
    coordinator_grace: Annotated[
        timedelta,
        About(
            doc="How long agents keep training without their coordinator.",
            kind=duration(),
            supported=False,
        ),
    ] = timedelta(0)

    def __post_init__(self) -> None:
        require_ranges(self, name="recovery")


_LEVELS = Listing(item=Text(what="the name of a topology level", pattern=r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which nodes should be close to each other."""

    required: Annotated[
        tuple[str, ...], About(doc="Levels within which the gang must lie.", kind=_LEVELS, supported=False)
    ] = ()
    preferred: Annotated[
        tuple[str, ...], About(doc="Levels within which the gang should lie.", kind=_LEVELS, supported=False)
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A valid run. Built by hand or decoded, it has passed every rule; raises InvalidRun otherwise."""

    name: str
    """A DNS label; `metadata.name` in the file."""
    nodes: Annotated[Nodes, About(doc="The machines of the run.", kind=section(Nodes))]
    workload: Annotated[
        Workload,
        About(doc="What every rank runs.", kind=OneOf(sections=(section(PythonWorkload), section(CommandWorkload)))),
    ]
    model: Annotated[
        Model | None,
        About(
            doc="The model, for what a mesh must divide and for `behemoth plan`. Without it nothing is checked.",
            kind=OneOf(sections=(section(NamedModel), section(ModelFile))),
        ),
    ] = None
    mesh: Annotated[
        Mesh,
        About(
            doc="The parallel layout: tp x cp x dp x pp is the number of ranks, etp x ep x edp equals tp x cp x dp.",
            kind=section(Mesh, complete=complete_axes),
        ),
    ] = Mesh()  # noqa: RUF009 - frozen
    pipeline: Annotated[
        Pipeline,
        About(
            doc="Which pipeline stage holds which layers, for `behemoth plan`. A run that trains saves what its "
            "program declares, whatever stands here.",
            kind=section(Pipeline),
        ),
    ] = Pipeline()  # noqa: RUF009 - frozen
    recipe: Annotated[
        Recipe,
        About(
            doc="What is saved for each parameter, for `behemoth plan`. A run that trains saves what its program "
            "declares, whatever stands here.",
            kind=section(Recipe),
        ),
    ] = Recipe()  # noqa: RUF009 - frozen
    checkpoint: Annotated[
        Checkpoint, About(doc="Where checkpoints go, how often, and how long they stay.", kind=section(Checkpoint))
    ] = Checkpoint()
    recovery: Annotated[
        Recovery, About(doc="Limits by which faults are told and recovery is given up.", kind=section(Recovery))
    ] = Recovery()
    placement: Annotated[
        Placement, About(doc="Which nodes should be close to each other.", kind=section(Placement))
    ] = Placement()
    drill: Annotated[
        tuple[Fault, ...],
        About(
            doc="Faults to inject, as `behemoth run --drill` takes them. Ranks and nodes count from 0, spares come "
            "last. They are no part of what is trained: a run may be resumed with other ones.",
            kind=Listing(
                item=Notation(
                    what=FAULT_EXPECTED, pattern=FAULT_PATTERN, unit="fault", read=parse_fault, write=format_fault
                )
            ),
        ),
    ] = field(default=())

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise InvalidRun(problems)


def require_fit(run: TrainingRun, inventory: Inventory) -> None:
    """Hold the mesh of `run` to an inventory that was read from `spec.model.inventory`. Raises InvalidRun."""
    problems = list(_misfits(run, inventory))
    if problems:
        raise InvalidRun(problems)


def _problems(run: TrainingRun) -> Iterator[Problem]:
    """What no single field can tell."""
    if not re.fullmatch(NAME_PATTERN, run.name):
        yield Problem(path="metadata.name", reason=f"expected a DNS label, got {run.name!r}", code="pattern")
    yield from _mesh_problems(run)
    yield from _copy_problems(run)
    yield from _drain_problems(run)
    if isinstance(run.model, NamedModel):
        yield from _misfits(run, named_inventory(run.model.ref))
    else:
        yield from _pipeline_problems(run, 0)
    num_nodes = run.nodes.count + run.nodes.spares
    for index, fault in enumerate(run.drill):
        reason = misaim(fault, num_ranks=run.nodes.num_ranks, num_nodes=num_nodes, total_steps=run.workload.steps)
        if reason:
            yield Problem(
                path=f"spec.drill[{index}]", reason=f"{reason} in '{format_fault(fault)}'", code="drill-range"
            )


def _copy_problems(run: TrainingRun) -> Iterator[Problem]:
    copies, nodes = run.checkpoint.peer_copies, run.nodes
    num_domains = -(-nodes.count // nodes.failure_domain)
    if copies > 0 and copies >= num_domains:
        yield Problem(
            path="spec.checkpoint.peer_copies",
            reason=f"expected fewer copies than the {num_domains} failure domains of {nodes.count} nodes, "
            f"{nodes.failure_domain} in each, got {copies}",
            hint=f"at most {num_domains - 1}, or a smaller spec.nodes.failure_domain",
            code="too-few-domains",
        )
    if run.checkpoint.peer_rate == 0:
        yield Problem(
            path="spec.checkpoint.peer_rate", reason="expected at least 1 byte a second, got 0", code="out-of-range"
        )


def _drain_problems(run: TrainingRun) -> Iterator[Problem]:
    checkpoint, drain = run.checkpoint, run.checkpoint.drain
    if drain is None:
        if checkpoint.durable == "drain":
            yield Problem(
                path="spec.checkpoint.durable",
                reason="expected 'store' where there is no spec.checkpoint.drain, got 'drain'",
                hint="name the second store in spec.checkpoint.drain.to",
                code="drain-missing",
            )
        return
    if checkpoint.store is not None and drain.to.rstrip("/") == checkpoint.store.rstrip("/"):
        yield Problem(
            path="spec.checkpoint.drain.to",
            reason=f"expected another store than spec.checkpoint.store, got the same, {drain.to!r}",
            code="drain-same",
        )
    if drain.rate == 0:
        yield Problem(
            path="spec.checkpoint.drain.rate", reason="expected at least 1 byte a second, got 0", code="out-of-range"
        )


def _mesh_problems(run: TrainingRun) -> Iterator[Problem]:
    mesh, nodes = run.mesh, run.nodes
    if mesh.num_ranks == nodes.num_ranks:
        return
    others = mesh.num_ranks // mesh.dp
    fits = nodes.num_ranks % others == 0
    yield Problem(
        path="spec.mesh",
        reason=f"expected tp x cp x dp x pp to equal the {nodes.num_ranks} ranks of {nodes.count} nodes with "
        f"{nodes.gpus_per_node} each, got {mesh.num_ranks}",
        hint=f"spec.mesh.dp: {nodes.num_ranks // others} would fit" if fits else "",
        code="mesh-ranks",
    )


def _misfits(run: TrainingRun, inventory: Inventory) -> Iterator[Problem]:
    for axis, reason in misfits(inventory, run.mesh):
        sizes = [n for n in range(1, run.mesh.size(axis)) if inventory.num_experts % n == 0] if axis == "ep" else []
        hint = f"the nearest smaller one is {sizes[-1]}" if sizes and inventory.num_experts else ""
        yield Problem(path=f"spec.mesh.{axis}", reason=reason, hint=hint, code="mesh-model")
    yield from _pipeline_problems(run, inventory.num_layers)


def _pipeline_problems(run: TrainingRun, num_layers: int) -> Iterator[Problem]:
    for name, reason in run.pipeline.misfits(num_layers, run.mesh.pp):
        yield Problem(path=f"spec.pipeline.{name}", reason=reason, code="pipeline-model")
