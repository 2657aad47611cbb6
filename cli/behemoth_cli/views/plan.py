"""What a run asks for, rank by rank: places, coordinates, bytes. Numbers that are not known are not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from behemoth.base.ids import Rank
from behemoth.base.units import format_duration
from behemoth.spec.checkpoint import EverySteps
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES
from behemoth.spec.model import Inventory, ModelFile, NamedModel
from behemoth.spec.pipeline import EVEN, Pipeline
from behemoth.spec.run import TrainingRun
from behemoth_cli.out.table import Column, Listing, Page, Section
from behemoth_cli.views.figures import ALL_AXES, axes_text, count, ranks, size
from behemoth_cli.views.forecast import forecast_body, forecast_sections
from behemoth_cli.views.restores import Restore

if TYPE_CHECKING:
    from behemoth.checkpoint.forecast import Forecast
    from behemoth.checkpoint.rank_bytes import RankBytes

MAX_ROWS = 64
"""Ranks that are listed one by one; more are folded where they hold as much, as far as a page tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRank:
    """One rank; `held` is None where the tensors are not known."""

    rank: Rank
    node: int
    local_rank: int
    coordinates: tuple[int, ...]
    held: RankBytes | None


def plan_page(
    run: TrainingRun,
    inventory: Inventory | None,
    *,
    is_full: bool,
    held: Sequence[RankBytes] | None = None,
    save: Forecast | None = None,
    restores: Sequence[Restore] = (),
    reads_shared: bool = False,
) -> Page:
    """`is_full`: one row for every rank, however many there are. `held`: by rank what it holds, and `save`: what one
    costs, where that is known; `restores`: how it is read then, one at least, and whether nodes pass on what they
    read."""
    planned = planned_ranks(run, held)
    one_by_one = is_full or len(planned) <= MAX_ROWS
    listing = _rank_listing(run, planned) if one_by_one else _folded_listing(planned)
    return Page(
        kind="Plan",
        name=f"run/{run.name}",
        sections=(
            Section(pairs=_facts(run, inventory)),
            *(forecast_sections(save, restores, reads_shared=reads_shared) if save is not None else ()),
            Section(title="Ranks", listing=listing),
        ),
        body=_body(run, inventory, planned) | forecast_body(save, restores, reads_shared=reads_shared),
    )


def planned_ranks(run: TrainingRun, held: Sequence[RankBytes] | None) -> list[PlannedRank]:
    planned = []
    of_axes = [run.mesh.coordinates(axis) for axis in ALL_AXES]
    for rank, coordinates in zip(map(Rank, range(run.nodes.num_ranks)), zip(*of_axes, strict=True), strict=True):
        node, local_rank = divmod(rank, run.nodes.gpus_per_node)
        of_rank = held[rank] if held is not None else None
        planned.append(PlannedRank(rank=rank, node=node, local_rank=local_rank, coordinates=coordinates, held=of_rank))
    return planned


def _facts(run: TrainingRun, inventory: Inventory | None) -> tuple[tuple[str, str], ...]:
    nodes, every = run.nodes, run.checkpoint.every
    cadence = f"{every.steps} steps" if isinstance(every, EverySteps) else format_duration(every.interval)
    return (
        ("run", run.name),
        ("nodes", f"{nodes.count}, each with {nodes.gpus_per_node} ranks"),
        ("spares", str(nodes.spares)),
        ("ranks", str(nodes.num_ranks)),
        ("dense mesh", axes_text(run.mesh, DENSE_AXES)),
        ("expert mesh", axes_text(run.mesh, EXPERT_AXES)),
        *((("pipeline", _pipeline(run.pipeline)),) if run.pipeline != EVEN else ()),
        ("model", _model(run, inventory)),
        ("steps", str(run.workload.steps)),
        ("checkpoint", f"every {cadence}, in {run.checkpoint.store or 'the run directory'}"),
    )


def _pipeline(pipeline: Pipeline) -> str:
    layers = f"layers {', '.join(map(str, pipeline.layers))}" if pipeline.layers else "as even as whole layers allow"
    return layers if pipeline.virtual == 1 else f"{layers}; {pipeline.virtual} virtual stages on each"


def _model(run: TrainingRun, inventory: Inventory | None) -> str:
    match run.model:
        case None:
            return "not named, so bytes are not known"
        case NamedModel(ref=name) | ModelFile(inventory=name):
            if inventory is None or not inventory.tensors:
                return f"{name}: its tensors come from the program, so bytes are not known"
            return f"{name}: {count(inventory.num_params)} parameters in {len(inventory.tensors)} tensors"


def _rank_listing(run: TrainingRun, planned: Sequence[PlannedRank]) -> Listing:
    """Only the axes that are used have a column."""
    used = [number for number, axis in enumerate(ALL_AXES) if run.mesh.size(axis) > 1]
    has_bytes = any(one.held is not None for one in planned)
    heads = ["rank", "node", "local", *(ALL_AXES[number] for number in used), *(["weights", "optimizer"] * has_bytes)]
    return Listing(
        kind="RankList",
        columns=tuple(Column(name=head, align="right") for head in heads),
        rows=tuple(
            (
                str(one.rank),
                str(one.node),
                str(one.local_rank),
                *(str(one.coordinates[number]) for number in used),
                *_bytes(one.held),
            )
            for one in planned
        ),
    )


def _folded_listing(planned: Sequence[PlannedRank]) -> Listing:
    groups: dict[tuple[str, ...], list[PlannedRank]] = {}
    for one in planned:
        groups.setdefault(_bytes(one.held), []).append(one)
    heads = ["ranks", "nodes", "count", *(["weights", "optimizer"] * (() not in groups))]
    return Listing(
        kind="RankList",
        columns=tuple(Column(name=head, align="left" if head in ("ranks", "nodes") else "right") for head in heads),
        rows=tuple(
            (ranks(one.rank for one in group), ranks(one.node for one in group), str(len(group)), *held)
            for held, group in groups.items()
        ),
    )


def _bytes(held: RankBytes | None) -> tuple[str, ...]:
    return (size(held.weights_bytes), size(held.optimizer_bytes)) if held is not None else ()


def _body(run: TrainingRun, inventory: Inventory | None, planned: Sequence[PlannedRank]) -> dict[str, object]:
    has_tensors = inventory is not None and bool(inventory.tensors)
    return {
        "run": run.name,
        "numNodes": run.nodes.count,
        "numSpares": run.nodes.spares,
        "ranksPerNode": run.nodes.gpus_per_node,
        "numRanks": run.nodes.num_ranks,
        "mesh": {axis: run.mesh.size(axis) for axis in ALL_AXES},
        "numParameters": inventory.num_params if inventory is not None and has_tensors else None,
        "totalSteps": run.workload.steps,
        "ranks": [
            {
                "rank": one.rank,
                "node": one.node,
                "localRank": one.local_rank,
                **dict(zip(ALL_AXES, one.coordinates, strict=True)),
                "weightsBytes": one.held.weights_bytes if one.held is not None else None,
                "optimizerBytes": one.held.optimizer_bytes if one.held is not None else None,
            }
            for one in planned
        ],
    }
