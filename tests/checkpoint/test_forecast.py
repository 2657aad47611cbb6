"""What a forecast says of a save is what a save does."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from behemoth.agent.budget import require_budget
from behemoth.agent.storewire import Budget
from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint import scale_waves
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import Intake, ScaledDown
from behemoth.checkpoint.forecast import Forecast, Rates, forecast, forecast_restore
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.snapshot_format import file_bytes
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from behemoth.testing.store import MemoryStore, contents
from checkpoint.checkpoint_rig import logical_arrays, save, toy_layout
from checkpoint.snapshots import formatted, keep, stage_bytes

RATES = Rates(
    memory_bytes_per_s=10, peer_bytes_per_s=5, local_disk_bytes_per_s=4, disk_bytes_per_s=2, store_bytes_per_s=1
)


def of(layout: Layout, *, ranks_per_node: int = 2, rates: Rates = RATES) -> Forecast:
    return forecast(layout, ranks_per_node=ranks_per_node, rates=rates)


def test_files_and_metadata_are_those_of_a_save() -> None:
    layout, store = toy_layout(), MemoryStore()
    save(store, layout, logical_arrays(layout, 1), step=1)
    sizes = {one.key: one.size_bytes for one in store.list("")}
    metadata = sum(size for key, size in sizes.items() if "/c" not in key.removeprefix("steps"))
    found = of(layout)
    assert found.num_files == len(sizes)
    # Names of run and write are left empty, and CRCs are as wide as they may be.
    assert abs(found.metadata_bytes - metadata) < 200


def test_staging_is_that_of_the_fullest_node() -> None:
    layout = toy_layout()
    arenas = [Arena.size_bytes(plan_rank(layout, Rank(rank))) for rank in range(4)]
    assert of(layout).staging_bytes == max(arenas[0] + arenas[1], arenas[2] + arenas[3])
    assert of(layout, ranks_per_node=4).staging_bytes == sum(arenas)
    held = forecast(layout, ranks_per_node=2, peer_copies=1, rates=RATES)
    assert held.staging_bytes == sum(arenas)


def test_staging_and_copies_are_those_of_the_node_that_holds_most_for_others() -> None:
    """Of three nodes two are in one failure domain: the third one holds the copies of both, and is held to that."""
    layout = Layout(
        mesh=Mesh(dp=3, edp=3), arrays=(ArraySpec(name="w", dtype="int8", shape=(90_001,), flat_over="dp"),)
    )
    plans = [plan_rank(layout, Rank(rank)) for rank in range(3)]
    found = forecast(layout, ranks_per_node=1, peer_copies=1, failure_domain=2, rates=RATES)
    assert found.staging_bytes == sum(map(Arena.size_bytes, plans))
    assert found.seconds["peer"] == (plans[0].data_bytes + plans[1].data_bytes) / 5
    most = Budget(limit_bytes=found.staging_bytes, own=(Rank(2),), copies=(Rank(0), Rank(1)))
    require_budget(layout, most)
    with pytest.raises(Invalid, match="for copies of 2"):
        require_budget(layout, msgspec.structs.replace(most, limit_bytes=found.staging_bytes - 1))
    twice = forecast(layout, ranks_per_node=1, peer_copies=2, rates=RATES)
    assert (twice.staging_bytes, twice.seconds["peer"]) == (found.staging_bytes, found.seconds["peer"])


def test_what_a_node_keeps_until_scales_are_known_is_told_beside_its_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 x 64 float32 values each of four ranks converts a quarter, by one scale or by one for each row."""
    values = ArraySpec(name="w", dtype="float32", shape=(64, 64), dims=((0, "tp"),))
    layout = Layout(mesh=Mesh(tp=4, etp=4), arrays=(values,))
    low = replace(layout, arrays=(replace(values, dtype="float8_e4m3fn"),))

    def kept(block: tuple[int, int]) -> int:
        intake = Intake(convert={"w": ScaledDown(array="w", block=block)})
        return forecast_restore(layout, low, ranks_per_node=2, intake=intake).kept_bytes

    assert (kept((64, 64)), kept((1, 64))) == (2 * 16 * 64 * 4, 0)
    assert forecast_restore(layout, layout, ranks_per_node=2).kept_bytes == 0
    monkeypatch.setattr(scale_waves, "NODE_KEPT_BYTES", 5000)
    assert kept((64, 64)) == 5000


def test_seconds_are_those_of_the_slowest_rank_or_node() -> None:
    layout = toy_layout()
    plans = [plan_rank(layout, Rank(rank)) for rank in range(4)]
    found = of(layout)
    assert found.seconds["memory"] == max(plan.data_bytes for plan in plans) / 10
    assert found.seconds["peer"] == max(one.data_bytes + two.data_bytes for one, two in (plans[:2], plans[2:])) / 5
    assert (
        found.seconds["disk"] == max(one.written_bytes + two.written_bytes for one, two in (plans[:2], plans[2:])) / 2
    )
    files = [file_bytes(plan) for plan in plans]
    assert found.seconds["local_disk"] == max(files[0] + files[1], files[2] + files[3]) / 4
    faster = of(layout, rates=replace(RATES, store_bytes_per_s=4))
    assert found.seconds["store"] == 4 * faster.seconds["store"]
    assert faster.requests_per_s == pytest.approx(4 * found.requests_per_s)


def test_the_own_disk_holds_what_a_node_really_writes_there() -> None:
    layout, store = toy_layout(), MemoryStore()
    for rank in map(Rank, range(2)):
        plan = plan_rank(layout, rank)
        arena = formatted(plan)
        for step in (1, 2):
            stage_bytes(arena, plan, f"a1-{step}", step)
            keep(store, arena, plan)
    lies_there = sum(len(data) for data in contents(store).values())
    found = of(layout).local_disk
    assert found.capacity_bytes == lies_there
    assert found.copied_bytes == lies_there / 2


def test_small_arrays_are_one_request_each_and_metadata_counts_too() -> None:
    layout = toy_layout()
    found = of(layout, rates=replace(RATES, usd_per_million_requests=1e6))
    # One shard for each model-parallel block: tp or ep cuts two arrays in two, one rank's records lie in four.
    num_shards = len(layout.arrays) + 3 * 1 + 3
    num_metadata = found.num_files - len(layout.arrays)
    assert found.num_objects == found.num_parts == found.num_requests == num_shards + num_metadata
    assert found.price_usd == found.num_requests


def test_the_reference_behemoth_keeps_its_bounds() -> None:
    layout = model_layout(named_inventory("behemoth-ref"), Recipe(), Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125))
    phases: list[tuple[int, int]] = []
    found = forecast(
        layout,
        ranks_per_node=8,
        rates=Rates(),
        progress=lambda done, total: phases.append((done, total)),
    )
    assert found.data_bytes == 24_185_543_497_728
    assert found.bytes_per_rank.max <= 1.02 * found.bytes_per_rank.mean
    assert found.metadata_bytes <= 8_000_000
    assert found.num_requests <= 4_000_000
    assert found.exchanged_share <= 0.08
    assert forecast_restore(layout, layout, ranks_per_node=8).over_read.once <= 1.1
    assert phases == [(done, 3) for done in range(4)]
