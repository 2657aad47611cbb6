"""A rank that announced an update must have moved; whoever announced none may stay as it is."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.freshness import held_crc
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.receipt import Freshness, Receipt
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays, save, toy_layout, write_all_ranks

LAYOUT = toy_layout()
OLD, NEW = logical_arrays(LAYOUT, 1), logical_arrays(LAYOUT, 2)


def stages_layout() -> Layout:
    """Two pipeline stages: each array has one holder."""
    stages = tuple(ArraySpec(name=f"model/{stage}", dtype="float32", shape=(8,), stage=stage) for stage in (0, 1))
    return Layout(mesh=Mesh(pp=2), arrays=stages)


def test_a_stale_rank_and_a_stale_world_are_refused() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, OLD, step=1)
    # Its random number state moved, which must not hide that its model did not.
    stale = {3: {**OLD, "state/ranks": NEW["state/ranks"]}}
    named = r"rank 3: all that it holds, 7 arrays \('model/dense', .*, \.\.\), equals step 1, .* an update in step 2"
    with pytest.raises(Corrupt, match=named) as caught:
        save(store, LAYOUT, NEW, step=2, previous=first, stale=stale)
    assert caught.value.code == "rank-stale"
    with pytest.raises(Corrupt, match=r"all 7 arrays \(.*\) equal those of step 1, although rank 0") as caught:
        save(store, LAYOUT, OLD, step=2, previous=first)
    assert "frozen=True" in caught.value.hint
    assert "run.fence(updates=False)" in caught.value.hint
    newest = latest(store)
    assert newest is not None
    assert newest.step == 1


def test_a_stale_rank_that_alone_holds_its_arrays_is_refused() -> None:
    layout, store = stages_layout(), MemoryStore()
    old, new = logical_arrays(layout, 1), logical_arrays(layout, 2)
    first = save(store, layout, old, step=1)
    with pytest.raises(Corrupt, match=r"rank 1: all that it holds, 1 array \('model/1'\), equals step 1"):
        save(store, layout, new, step=2, previous=first, stale={1: old})


def test_between_two_updates_a_checkpoint_may_equal_the_last_one() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, OLD, step=35, updated_step=32)
    second = save(store, LAYOUT, OLD, step=40, updated_step=32, previous=first)
    third = save(store, LAYOUT, OLD, step=45, updated_step=40, previous=second)  # announced just before the last one
    refused = r"all 7 arrays \(.*\) equal those of step 45, although rank 0 announced .* step 48"
    with pytest.raises(Corrupt, match=refused):
        save(store, LAYOUT, OLD, step=50, updated_step=48, previous=third)
    save(store, LAYOUT, NEW, step=50, updated_step=48, previous=third)


def test_arrays_that_are_declared_frozen_may_stay_as_they_are() -> None:
    layout, store = stages_layout(), MemoryStore()
    old, new = logical_arrays(layout, 1), logical_arrays(layout, 2)
    first = save(store, layout, old, step=1)
    second = save(store, layout, {**old, "model/1": new["model/1"]}, step=2, previous=first, frozen=["model/0"])
    everything = [array.name for array in layout.arrays]
    save(store, layout, {**old, "model/1": new["model/1"]}, step=3, previous=second, frozen=everything)


def test_a_rank_whose_own_bytes_stay_is_healthy_while_something_else_that_it_holds_moves() -> None:
    """An expert without tokens: the weights that all ranks hold move, whoever writes them."""
    layout = Layout(
        mesh=Mesh(dp=2, ep=2, edp=1),
        arrays=(
            ArraySpec(name="model/experts", dtype="float32", shape=(2, 8), dims=((0, "ep"),)),
            ArraySpec(name="model/router", dtype="float32", shape=(1,)),
        ),
    )
    store = MemoryStore()
    old, new = logical_arrays(layout, 1), logical_arrays(layout, 2)
    first = save(store, layout, old, step=1)
    for idle in (0, 1):
        experts = new["model/experts"].copy()
        experts[idle] = old["model/experts"][idle]
        save(store, layout, {**new, "model/experts": experts}, step=2 + idle, previous=first)


def test_a_learning_rate_of_0_is_healthy_where_moments_move_or_no_update_is_announced() -> None:
    weight = torch.nn.Parameter(torch.ones(8))
    adam, sgd = torch.optim.AdamW([weight], lr=0.0), torch.optim.SGD([weight], lr=0.0)
    spec = ArraySpec(name="model/w", dtype="float32", shape=(8,))
    moments = [replace(spec, name=f"optim/{name}") for name in ("exp_avg", "exp_avg_sq")]

    def trained(optimizer: torch.optim.Optimizer) -> dict[str, npt.NDArray[np.generic]]:
        weight.grad = torch.full((8,), 0.5)
        optimizer.step()
        kept = {f"optim/{name}": value for name, value in optimizer.state[weight].items() if value.shape == (8,)}
        return {name: value.detach().numpy().copy() for name, value in {"model/w": weight, **kept}.items()}

    layout, store = Layout(mesh=Mesh(), arrays=(spec, *moments)), MemoryStore()
    states = [trained(adam) for _ in range(2)]
    assert (states[0]["model/w"] == states[1]["model/w"]).all()
    first = save(store, layout, states[0], step=1)
    save(store, layout, states[1], step=2, previous=first)

    layout, store = Layout(mesh=Mesh(), arrays=(spec,)), MemoryStore()
    states = [trained(sgd) for _ in range(2)]
    first = save(store, layout, states[0], step=1)
    with pytest.raises(Corrupt, match=r"equals step 1|equal those of step 1"):
        save(store, layout, states[1], step=2, previous=first)
    save(store, layout, states[1], step=2, previous=first, updated_step=1)


def test_single_arrays_that_stay_are_logged_unless_frozen_or_nothing_was_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, OLD, step=1)
    mixed = {**NEW, "model/norm": OLD["model/norm"]}
    save(store, LAYOUT, mixed, step=2, previous=first, frozen=["model/norm"])
    save(store, LAYOUT, OLD, step=3, previous=first, updated_step=1)
    assert caplog.messages == []
    save(store, LAYOUT, mixed, step=4, previous=first)
    assert caplog.messages == ["1 arrays did not change since step 1: ['model/norm']"]


def test_ranks_that_disagree_about_frozen_arrays_are_refused_even_at_the_first_save() -> None:
    store = MemoryStore()
    receipts = write_all_ranks(store, LAYOUT, OLD, step=1, frozen=["model/norm"])
    wrong = [replace(one, freshness=changed(one, frozen=())) if one.rank == 2 else one for one in receipts]
    with pytest.raises(Invalid, match=r"rank 2: .* others: \['model/norm'\]"):
        commit_receipts(store, LAYOUT, wrong, step=1)
    beyond = [replace(one, freshness=changed(one, frozen=(0, 99))) for one in receipts]
    with pytest.raises(Invalid, match="frozen arrays below 8, got 99"):
        commit_receipts(store, LAYOUT, beyond, step=1)


def test_a_rank_that_tells_nothing_about_updates_is_not_judged_and_its_receipt_has_the_former_form() -> None:
    store = MemoryStore()
    silent = [replace(one, freshness=msgspec.UNSET) for one in write_all_ranks(store, LAYOUT, OLD, step=1)]
    first = commit_receipts(store, LAYOUT, silent, step=1)
    assert b"held_prints" not in first.encode()
    assert CommitRecord.decode(first.encode()) == first
    save(store, LAYOUT, OLD, step=2, previous=first)
    document = msgspec.msgpack.decode(silent[0].encode())
    assert sorted(document["receipt"]) == ["attempt", "layout_digest", "rank", "spans", "step", "write_id"]
    assert Receipt.decode(msgspec.msgpack.encode(document)) == silent[0]


def test_a_layout_says_nothing_of_frozen_arrays_so_that_they_can_be_declared_later() -> None:
    record = save(MemoryStore(), LAYOUT, OLD, step=1, frozen=["model/norm"])
    assert record.layout_digest == "986d0a25350908e6002f3cebf4071dd0863c16a09ecc72611a21d7aeea0559be"
    assert CommitRecord.decode(record.encode()) == record


def changed(receipt: Receipt, *, frozen: tuple[int, ...]) -> Freshness:
    assert isinstance(receipt.freshness, Freshness)
    return replace(receipt.freshness, frozen=frozen)


def test_an_empty_world_of_small_state_has_nothing_to_judge() -> None:
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="state/cursor", dtype="uint8", shape=(4,)),))
    store, same = MemoryStore(), {"state/cursor": np.ones(4, np.uint8)}
    first = save(store, layout, same, step=1)
    save(store, layout, same, step=2, previous=first)


def test_the_order_in_which_a_rank_goes_through_its_spans_does_not_make_it_fresh() -> None:
    spans = plan_rank(LAYOUT, Rank(0)).spans
    crcs = range(len(spans))
    there, back = (held_crc(LAYOUT, *rows, frozen=()) for rows in ((spans, crcs), (spans[::-1], crcs[::-1])))
    assert there == back != 0
