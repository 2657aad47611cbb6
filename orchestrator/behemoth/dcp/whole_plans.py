"""The full plans of all ranks, also where a planner that caches them only says that they are unchanged.

Every save is a new write here, so each rank is sent its plan again. Neighbour: `writer`, which remembers the plans of
its last save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

from behemoth.base.errors import Invalid


def whole_plans(plans: Sequence[SavePlan], last: Sequence[SavePlan]) -> list[SavePlan]:
    """The full plan of each rank; `last` are those of the writer's last save. Raises Invalid when the unchanged plans
    are not known."""
    if all(plan.usable for plan in plans):
        return list(plans)
    known = _cached(last)
    if len(known) != len(plans):
        raise Invalid(
            "BehemothWriter: expected whole plans, got cached ones that neither this writer nor any single planner has "
            "in full",
            hint="keep one BehemothWriter for all saves of a planner, or leave out enable_plan_caching",
            code="dcp-cached-plan",
        )
    return [plan if plan.usable else old for plan, old in zip(plans, known, strict=True)]


def _cached(last: Sequence[SavePlan]) -> Sequence[SavePlan]:
    """The plans in torch's own cache. Its key is the name of the planner's class, which a writer does not know: so they
    are used only when there is one such class."""
    cached: Mapping[str, Sequence[SavePlan]] = getattr(SavePlanner, "_cached_global_plan", {})
    return next(iter(cached.values())) if len(cached) == 1 else last
