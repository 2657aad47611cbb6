"""A DCP save of several ranks in this process, step by step, as a program does that drives writers without torch's
`save`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from behemoth.dcp import BehemothWriter


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A save whose ranks know what to write. The first is its coordinator."""

    writers: Sequence[BehemothWriter]
    planners: Sequence[DefaultSavePlanner]
    plans: Sequence[SavePlan]
    metadata: Metadata

    def write(self, rank: int) -> list[WriteResult]:
        """Blocks; what the rank has written."""
        planner = self.planners[rank]
        return self.writers[rank].write_data(planner.finish_plan(self.plans[rank]), planner).value()

    def finish(self, results: list[list[WriteResult]]) -> None:
        self.writers[0].finish(self.metadata, results)


def planned(writers: Sequence[BehemothWriter], state: Mapping[str, Any]) -> Planned:
    """All ranks have the same state, of which DCP gives each a part to write."""
    planners = [DefaultSavePlanner() for _ in writers]
    plans = []
    for rank, (writer, planner) in enumerate(zip(writers, planners, strict=True)):
        planner.set_up_planner(dict(state), writer.storage_meta(), is_coordinator=rank == 0)
        writer.set_up_storage_writer(rank == 0)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    return Planned(writers=writers, planners=planners, plans=writers[0].prepare_global_plan(plans), metadata=metadata)
