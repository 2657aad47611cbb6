"""What a program with context parallelism shares out over cp and dp at once: declared, saved on one mesh and restored
on others, the same as `behemoth plan` has it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import prove_coverage
from behemoth.sdk import State
from behemoth.sdk.bucket import Slot, declare_bucket
from behemoth.sdk.place import RankMesh
from behemoth.sdk.state import BoundState
from behemoth.spec.mesh import Axes, Mesh
from behemoth.spec.model import decode_inventory
from behemoth.spec.recipe import Recipe
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, save
from checkpoint.random_layouts import CHUNK_BYTES, small_chunks
from checkpoint.test_reshard import restored
from sdk.host_memory import raw_of

REPLICAS: Axes = ("cp", "dp")
WEIGHT, EXPERTS = (7, 12), (4, 3, 5)
MODEL = decode_inventory(
    b"""{"format": 1, "experts": 4, "tensors": [
      {"name": "w", "shape": [7, 12], "shard": "tp1"}, {"name": "experts", "shape": [4, 3, 5], "shard": "ep0"}]}""",
    source="toy",
)


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Up to 16 ranks; the experts lie over ep and edp whatever cp is."""
    tp, cp, dp = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    ep = draw(st.sampled_from([ep for ep in (1, 2, 4) if tp * cp * dp % ep == 0]))
    return Mesh(tp=tp, cp=cp, dp=dp, ep=ep, edp=tp * cp * dp // ep)


def shares(mesh: Mesh, rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """What a program on this rank has: made by hand from numbers of ranks, tp innermost, then cp, then dp."""
    weight = np.arange(84, dtype=np.float32).reshape(WEIGHT)
    experts = np.arange(60, dtype=np.float32).reshape(EXPERTS)
    tp, replica = rank % mesh.tp, rank // mesh.tp
    block = np.ascontiguousarray(np.split(weight, mesh.tp, axis=1)[tp])
    expert_block = np.split(experts, mesh.ep)[rank % mesh.ep]
    return {
        "w": block,
        "flat": share(block.reshape(-1), mesh.cp * mesh.dp, replica),
        "rows": share(block, mesh.cp * mesh.dp, replica),
        "experts": share(expert_block.reshape(-1), mesh.edp, rank // mesh.ep),
    }


def share(whole: npt.NDArray[Any], num: int, index: int) -> npt.NDArray[Any]:
    each = -(-len(whole) // num)
    return np.ascontiguousarray(whole[index * each : (index + 1) * each])


def declared(mesh: Mesh, rank: int) -> BoundState:
    state, held = State(), shares(mesh, rank)
    state.array("w", held["w"], shape=WEIGHT, dims={1: "tp"})
    state.array("flat", held["flat"], shape=WEIGHT, dims={1: "tp"}, flat_over=REPLICAS)
    state.array("rows", held["rows"], shape=WEIGHT, dims={1: "tp"}, flat_over=REPLICAS, flat_rows=True)
    state.array("experts", held["experts"], shape=EXPERTS, dims={0: "ep"}, flat_over="edp")
    return BoundState(state, mesh, Rank(rank))


@settings(max_examples=60, deadline=None)
@given(old=meshes(), new=meshes(), chunk_bytes=CHUNK_BYTES)
def test_what_one_mesh_saved_another_restores_as_a_program_of_that_mesh_holds_it(
    old: Mesh, new: Mesh, chunk_bytes: int
) -> None:
    with small_chunks(chunk_bytes):
        before, after = declared(old, 0).layout, declared(new, 0).layout
        prove_coverage(before)
        store = MemoryStore()
        weight, experts = (np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for shape in (WEIGHT, EXPERTS))
        arrays = {"w": weight, "flat": weight, "rows": weight, "experts": experts}
        opened = open_commit(store, save(store, before, arrays, step=5).ref)
        for rank in range(new.num_ranks):
            assert declared(new, rank).layout == after
            expected = {name: held.tobytes() for name, held in shares(new, rank).items()}
            assert restored(store, opened, after, rank) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Mesh(tp=2, cp=2, dp=2, ep=4, edp=2), Mesh(tp=2, cp=4, dp=1, ep=4, edp=2)),
        (Mesh(tp=2, cp=2, dp=2, ep=4, edp=2), Mesh(tp=2, cp=1, dp=4, ep=4, edp=2)),
        (Mesh(cp=2, dp=3, ep=2, edp=3), Mesh(cp=1, dp=1)),
        (Mesh(dp=3, edp=3), Mesh(cp=3, dp=2, edp=6)),
    ],
)
def test_saved_by_the_programs_own_pieces_cp_may_double_halve_come_and_go(old: Mesh, new: Mesh) -> None:
    before, after = declared(old, 0).layout, declared(new, 0).layout
    for rank in range(old.num_ranks):  # what the rig cuts from the whole arrays is what the program has
        sources = {name: raw_of(memory) for name, memory in declared(old, rank).sources().items()}
        assert sources == {name: held.tobytes() for name, held in shares(old, rank).items()}
    store, whole = MemoryStore(), logical_arrays(before, 3)
    opened = open_commit(store, save(store, before, whole, step=5).ref)
    for rank in range(new.num_ranks):
        got = restored(store, opened, after, rank)
        block = np.split(whole["rows"], new.tp, axis=1)[rank % new.tp]
        assert got["rows"] == share(block, new.cp * new.dp, rank // new.tp).tobytes()
        block = np.split(whole["flat"], new.tp, axis=1)[rank % new.tp]
        assert got["flat"] == share(block.reshape(-1), new.cp * new.dp, rank // new.tp).tobytes()


@pytest.mark.parametrize(
    "mesh", [Mesh(tp=2, cp=2, dp=3, ep=4, edp=3), Mesh(tp=2, dp=6, ep=4, edp=3), Mesh(cp=2, edp=2)]
)
def test_a_plan_of_the_same_mesh_has_the_layout_that_the_program_declares(mesh: Mesh) -> None:
    planned = model_layout(MODEL, Recipe(exp_avg="none", exp_avg_sq="none"), mesh)
    for rank in range(mesh.num_ranks):
        state, held = State(), shares(mesh, rank)
        state.array("optim/master/w", held["flat"], shape=WEIGHT, dims={1: "tp"}, flat_over=REPLICAS, stage=0)
        state.array("optim/master/experts", held["experts"], shape=EXPERTS, dims={0: "ep"}, flat_over="edp", stage=0)
        assert BoundState(state, mesh, Rank(rank)).layout == planned


def test_a_share_of_dp_alone_is_refused_with_what_to_declare_beside_cp() -> None:
    state = State()
    state.array("m", np.zeros(2), shape=(8,), flat_over="dp")
    with pytest.raises(Invalid, match="a flat piece of 4 elements") as caught:
        BoundState(state, Mesh(cp=2, dp=2, edp=4), Rank(0))
    assert 'flat_over=("cp", "dp")' in caught.value.hint


def test_a_bucket_is_shared_over_cp_and_dp_too() -> None:
    """10 elements behind 2 of padding, for four ranks: 3 each, of which the first has 1 element and the last 3."""
    mesh, buffer = Mesh(cp=2, dp=2, edp=4), np.arange(12, dtype=np.float32)
    sources = {}
    for rank in range(4):
        state, mine = State(), buffer[3 * rank : 3 * rank + 3].copy()
        slot = Slot(name="m", shape=(10,), begin=2)
        declare_bucket(state, RankMesh(sizes=mesh, rank=Rank(rank)), mine, [slot], size=12, flat_over=REPLICAS)
        sources[rank] = np.frombuffer(raw_of(BoundState(state, mesh, Rank(rank)).sources()["m"]), np.float32).tolist()
    assert sources == {0: [2], 1: [3, 4, 5], 2: [6, 7, 8], 3: [9, 10, 11]}
    with pytest.raises(Invalid, match="bucket: expected an axis, or a tuple"):
        declare_bucket(State(), RankMesh(sizes=mesh, rank=Rank(0)), None, [], size=1, flat_over=("dp", "cp"))
