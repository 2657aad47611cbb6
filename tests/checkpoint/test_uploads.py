"""Objects and parts of a save on object storage: every byte is sent once, by somebody who holds some of its part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint import uploads as uploads_module
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.uploads import (
    MAX_PART_BYTES,
    MIN_PART_BYTES,
    SINGLE_BYTES,
    Run,
    Uploads,
    cut_parts,
    plan_uploads,
)
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.checkpoint_rig import held_by
from checkpoint.random_layouts import layouts

MIB = 1 << 20


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), least=st.sampled_from([1, 8, 40]), single=st.sampled_from([1, 16, 100]))
def test_every_byte_is_sent_once_by_somebody_who_holds_some_of_its_part(
    layout: Layout, least: int, single: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads_module, "MIN_PART_BYTES", least)
        patch.setattr(uploads_module, "SINGLE_BYTES", single)
        cut_parts.cache_clear()
        plan = plan_uploads(layout)
    sent = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    for uploads in plan.uploads:
        missing = 0
        for row, position in enumerate(uploads.kind.positions):
            missing += expect_sent_once(layout, layout.arrays[position], uploads, uploads.owner[row], sent)
        expect_sizes(uploads, least, single)
        assert uploads.exchanged_bytes == missing
    assert sent.tolist() == plan.sent_bytes.tolist()
    cut_parts.cache_clear()


def expect_sent_once(layout: Layout, spec: ArraySpec, uploads: Uploads, owners: np.ndarray, sent: np.ndarray) -> int:
    """By numbering the elements of the array; gives the bytes that owners do not hold themselves."""
    whole = np.arange(spec.num_elements).reshape(spec.shape)
    times, missing = np.zeros(spec.num_elements, dtype=np.int64), 0
    held = [np.ravel(held_by(layout, rank, spec, whole)) for rank in range(layout.mesh.num_ranks)]
    for shard, begin, end, owner in zip(uploads.shard, uploads.begin, uploads.end, owners, strict=True):
        box = tuple(slice(*interval) for interval in uploads.shards[shard])
        part = whole[box].reshape(-1)[begin // spec.itemsize : -(-end // spec.itemsize)]
        assert np.isin(part, held[owner]).any()
        assert spec.stage in (None, layout.mesh.coordinate(Rank(int(owner)), "pp"))
        # A piece that is split among its holders may be cut within an element.
        if begin % spec.itemsize == 0 and end % spec.itemsize == 0:
            missing += int((~np.isin(part, held[owner])).sum()) * spec.itemsize
            times[part] += spec.itemsize
        else:
            assert np.isin(part, held[owner]).all()
            bytes_of = np.full(len(part), spec.itemsize)
            bytes_of[0] -= begin % spec.itemsize
            bytes_of[-1] -= -end % spec.itemsize
            times[part] += bytes_of
        sent[owner] += end - begin
    assert (times == spec.itemsize).all()
    return missing


def expect_sizes(uploads: Uploads, least: int, single: int) -> None:
    sizes, num_requests = uploads.end - uploads.begin, 0
    for shard in range(len(uploads.shards)):
        parts = sizes[uploads.shard == shard]
        assert len(parts) == 1 or (parts.sum() >= single and (parts[:-1] >= least).all())
        num_requests += len(parts) if len(parts) == 1 else len(parts) + 2
    assert uploads.requests_per_array == num_requests


@pytest.mark.parametrize(
    ("bounds", "num_holders", "parts"),
    [
        ((0, 3 * MIB, 8 * MIB - 1), 1, [(0, 8 * MIB - 1, 0, 1)]),  # one request
        ((0, 4 * MIB, 8 * MIB), 1, [(0, 8 * MIB, 0, 1)]),  # merged until large enough
        (
            (0, 5 * MIB, 10 * MIB, 11 * MIB),
            1,
            [(0, 5 * MIB, 0, 0), (5 * MIB, 10 * MIB, 1, 1), (10 * MIB, 11 * MIB, 2, 2)],
        ),
        ((0, 1 * MIB, 9 * MIB), 1, [(0, 9 * MIB, 0, 1)]),  # a small one goes with the large one behind it
        ((0, 12 * MIB), 500, [(0, 6 * MIB, 0, 0), (6 * MIB, 12 * MIB, 0, 0)]),  # replicas share it out
        ((0, 6 * MIB, 6 * MIB, 12 * MIB), 1, [(0, 6 * MIB, 0, 0), (6 * MIB, 12 * MIB, 2, 2)]),  # an empty piece
    ],
)
def test_parts_of_a_shard(bounds: tuple[int, ...], num_holders: int, parts: list[tuple[int, ...]]) -> None:
    assert [run[:4] for run in cut_parts(bounds, num_holders)] == parts


def test_limits_of_parts_hold_for_any_shard() -> None:
    (only,) = cut_parts((0, SINGLE_BYTES - 1), 4)
    assert only == Run(0, SINGLE_BYTES - 1, 0, 0, 0)
    many = cut_parts(tuple(range(0, 60_001 * MIN_PART_BYTES, MIN_PART_BYTES)), 1)
    assert len(many) <= 10_000
    large = cut_parts((0, 9 * MAX_PART_BYTES), 1)
    assert [run.end - run.begin for run in large] == [MAX_PART_BYTES] * 9


def test_a_shard_that_parts_cannot_hold_is_refused() -> None:
    huge = ArraySpec(name="w", dtype="uint8", shape=(MAX_PART_BYTES * 10_001,))
    with pytest.raises(Invalid, match="'w': expected a shard of at most 10000 parts"):
        plan_uploads(Layout(mesh=Mesh(), arrays=(huge,)))


def test_the_two_halves_of_a_packed_dim_are_objects_of_their_own() -> None:
    spec = ArraySpec(name="w", dtype="uint8", shape=(4, 12), dims=((1, "tp"),), packed=(1, (6, 6)))
    (uploads,) = plan_uploads(Layout(mesh=Mesh(tp=2, edp=2), arrays=(spec,))).uploads
    assert sorted(box[1] for box in uploads.shards) == [(0, 3), (3, 6), (6, 9), (9, 12)]


def test_a_save_of_the_reference_behemoth_keeps_its_bounds() -> None:
    """Of 24.2 TB: 4 M requests at most, 8% of the bytes exchanged, nobody more than 2% above the mean."""
    mesh = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
    layout = model_layout(named_inventory("behemoth-ref"), Recipe(), mesh)
    plan = plan_uploads(layout)
    assert plan.sent_bytes.sum() == 12 * 2_015_461_958_144
    assert plan.sent_bytes.max() <= 1.02 * plan.sent_bytes.mean()
    assert plan.num_requests <= 4_000_000
    assert plan.exchanged_bytes <= 0.08 * plan.sent_bytes.sum()
