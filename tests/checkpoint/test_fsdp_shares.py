"""What a rank is said to hold is what FSDP2 gives it: chunks of torch, uneven and empty ones, with and without TP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout, SplitAxes
from behemoth.checkpoint.plan import plan_rank
from behemoth.spec.mesh import Mesh

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    tp=st.integers(1, 3),
    dp=st.integers(1, 5),
    tp_dim=st.none() | st.integers(0, 2),
)
def test_a_piece_is_the_chunk_of_a_chunk(shape: list[int], tp: int, dp: int, tp_dim: int | None) -> None:
    """`fully_shard` on a parameter that tensor parallelism has sharded before cuts dim 0 of the local shard, so that
    along dim 0 the shards of FSDP lie strided in the whole (DTensor's _StridedShard)."""
    dims: tuple[tuple[int, SplitAxes], ...] = () if tp_dim is None or tp_dim >= len(shape) else ((tp_dim, "tp"),)
    spec = ArraySpec(name="w", dtype="int64", shape=tuple(shape), dims=dims, flat_over="dp", flat_rows=True)
    layout = Layout(mesh=Mesh(tp=tp, dp=dp, edp=tp * dp), arrays=(spec,))
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    for rank in range(tp * dp):
        column, row = layout.mesh.coordinate(Rank(rank), "tp"), layout.mesh.coordinate(Rank(rank), "dp")
        block = chunk(whole, tp, column, dims[0][0]) if dims else whole
        mine = chunk(block, dp, row, 0)
        held = []
        for piece in plan_rank(layout, Rank(rank)).pieces:
            box = whole[tuple(slice(low, high) for low, high in piece.box)]
            held += box.reshape(-1)[slice(*piece.flat)].tolist()
        assert held == mine.reshape(-1).tolist()


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    edp=st.integers(2, 4),
    etp_dim=st.sampled_from([1, 2]),
)
def test_rows_of_the_second_dim_are_cut_behind_what_cuts_it_already(
    sizes: tuple[int, int, int], edp: int, etp_dim: int
) -> None:
    """Experts with Shard(1): one for each of ep ranks, their matrices over etp, and FSDP2 on what that leaves. Strided
    where both cut dim 1."""
    ep, etp, mesh = 2, 2, Mesh(dp=4 * edp, ep=2, etp=2, edp=edp)
    shape = [ep * sizes[0], edp * sizes[1], sizes[2]]
    shape[etp_dim] *= etp
    dims: dict[int, SplitAxes] = {1: "edp", etp_dim: "etp" if etp_dim == 2 else ("edp", "etp")}
    spec = ArraySpec(name="w", dtype="int64", shape=tuple(shape), dims=((0, "ep"), *sorted(dims.items())))
    whole = torch.arange(int(np.prod(shape))).reshape(shape)
    for rank in map(Rank, range(mesh.num_ranks)):
        block = chunk(chunk(whole, ep, mesh.coordinate(rank, "ep"), 0), etp, mesh.coordinate(rank, "etp"), etp_dim)
        mine = chunk(block, edp, mesh.coordinate(rank, "edp"), 1)
        (piece,) = plan_rank(Layout(mesh=mesh, arrays=(spec,)), rank).pieces
        assert piece.share.local_shape == tuple(mine.shape)
        assert torch.equal(whole[tuple(slice(low, high) for low, high in piece.box)], mine)


def chunk(tensor: torch.Tensor, num: int, index: int, dim: int) -> torch.Tensor:
    """As DTensor cuts: torch.chunk gives fewer chunks than asked for when they run out, and the rest hold nothing."""
    chunks = torch.chunk(tensor, num, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)
