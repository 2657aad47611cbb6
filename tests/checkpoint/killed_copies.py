"""Copies snapshots to a folder, one after the other, until somebody kills it: `killed_copies.py FOLDER FIRST`.

Prints the number of each write once its copy is durable. The neighbour `test_snapshot_files` kills it.
"""

# ruff: noqa: T201  # the parent reads what is printed

from __future__ import annotations

import itertools
import sys

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.spec.mesh import Mesh
from behemoth.storage.open import open_private
from checkpoint.snapshots import formatted, keep, stage_bytes


def plan_of_copies() -> RankPlan:
    """Some blocks, so that a kill often strikes within one of several writes."""
    return plan_rank(
        Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(3 << 20,)),)),
        Rank(0),
    )


def main(folder: str, first: int) -> None:
    plan, store = plan_of_copies(), open_private(folder)
    arena = formatted(plan)
    for number in itertools.count(first):
        stage_bytes(arena, plan, f"a1-{number}", number)
        keep(store, arena, plan)
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
