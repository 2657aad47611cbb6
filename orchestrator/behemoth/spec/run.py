"""The run as one value: everything that a run file says, checked.

Each field carries its description, from which decoding, `behemoth explain`, the reference and the later CRD follow.
Rules between fields stand at the end. Neighbours: each section has a file of its own (`nodes`, `checkpoint`, ...),
`decode` makes the value from text, `document` writes it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from behemoth.spec.checkpoint import Checkpoint
from behemoth.spec.drill import FAULT_EXPECTED, FAULT_PATTERN, Fault, format_fault, misaim, parse_fault
from behemoth.spec.field import About, Listing, Notation, OneOf, section
from behemoth.spec.fit import misfits
from behemoth.spec.mesh import Mesh, complete_axes
from behemoth.spec.model import Inventory, Model, ModelFile, NamedModel, named_inventory
from behemoth.spec.nodes import Nodes, Placement
from behemoth.spec.pipeline import Pipeline
from behemoth.spec.problem import InvalidRun, Problem
from behemoth.spec.recipe import Recipe
from behemoth.spec.recovery import Recovery
from behemoth.spec.workload import CommandWorkload, PythonWorkload, Workload

API_VERSION = "behemoth.dev/v1alpha1"
KIND = "TrainingRun"
NAME_PATTERN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""A DNS label (RFC 1123), since the name becomes that of a folder and of Kubernetes objects."""


def suggest_name(text: str) -> str:
    """The nearest valid name, or nothing."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
    return name if re.fullmatch(NAME_PATTERN, name) else ""


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
    ] = Checkpoint()  # noqa: RUF009 - frozen
    recovery: Annotated[
        Recovery, About(doc="Limits by which faults are told and recovery is given up.", kind=section(Recovery))
    ] = Recovery()  # noqa: RUF009 - frozen
    placement: Annotated[
        Placement, About(doc="Which nodes should be close to each other.", kind=section(Placement))
    ] = Placement()  # noqa: RUF009 - frozen
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
    yield from _local_disk_problems(run)
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
        yield _no_rate("spec.checkpoint.peer_rate")


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
        yield _no_rate("spec.checkpoint.drain.rate")


def _local_disk_problems(run: TrainingRun) -> Iterator[Problem]:
    checkpoint, disk = run.checkpoint, run.checkpoint.local_disk
    if disk is None:
        return
    stores = {"store": checkpoint.store, "drain.to": checkpoint.drain.to if checkpoint.drain is not None else None}
    for name, store in stores.items():
        if store is not None and disk.path.rstrip("/") == store.rstrip("/"):
            yield Problem(
                path="spec.checkpoint.local_disk.path",
                reason=f"expected another place than spec.checkpoint.{name}, got the same, {disk.path!r}",
                code="disk-in-store",
            )
    if disk.rate == 0:
        yield _no_rate("spec.checkpoint.local_disk.rate")


def _no_rate(path: str) -> Problem:
    return Problem(
        path=path,
        reason="expected at least 1 byte a second, got 0",
        hint="leave it out for no limit",
        code="out-of-range",
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
    for axis, reason in misfits(inventory, run.mesh, run.recipe):
        sizes = [n for n in range(1, run.mesh.size(axis)) if inventory.num_experts % n == 0] if axis == "ep" else []
        hint = f"the nearest smaller one is {sizes[-1]}" if sizes and inventory.num_experts else ""
        yield Problem(path=f"spec.mesh.{axis}", reason=reason, hint=hint, code="mesh-model")
    yield from _pipeline_problems(run, inventory.num_layers)


def _pipeline_problems(run: TrainingRun, num_layers: int) -> Iterator[Problem]:
    for name, reason in run.pipeline.misfits(num_layers, run.mesh.pp):
        yield Problem(path=f"spec.pipeline.{name}", reason=reason, code="pipeline-model")
