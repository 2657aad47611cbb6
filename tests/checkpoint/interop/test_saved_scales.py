"""A checkpoint with scales that is written anew batch by batch: its scales are read once, and every value is right."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.checkpoint.conversion import Intake, ScaledUp
from behemoth.checkpoint.interop import resharded
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.ports import Into
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import raw_bytes, save
from checkpoint.interop.rewriting import rewrite
from checkpoint.random_layouts import small_chunks

SHAPE, BLOCK = (13, 10), (3, 4)


class Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.num_reads: Counter[tuple[str, int]] = Counter()

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self.num_reads[key, offset_bytes] += 1
        super().read_into(key, offset_bytes=offset_bytes, into=into)


def blocks_of(scales: np.ndarray) -> np.ndarray:
    """Each scale as often as its block has elements."""
    return scales.repeat(BLOCK[0], 0)[: SHAPE[0]].repeat(BLOCK[1], 1)[:, : SHAPE[1]]


@settings(max_examples=25, deadline=None)
@given(
    block_bytes=st.sampled_from([1, 40, 1000]),
    num_together=st.integers(1, 5),
    seed=st.integers(0, 99),
    kept_bytes=st.sampled_from([0, 50, resharded.SCALES_BYTES]),
)
def test_saved_scales_are_read_once_by_all_batches_where_memory_allows(
    block_bytes: int, num_together: int, seed: int, kept_bytes: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name in ("a", "b"):
        arrays[name] = rng.normal(size=SHAPE).astype(DTYPES["float8_e4m3fn"])
        arrays[f"{name}.scale"] = rng.uniform(0.5, 2, size=(5, 3)).astype(np.float32)
    specs = tuple(ArraySpec(name=name, dtype=one.dtype.name, shape=one.shape) for name, one in arrays.items())
    wanted = tuple(ArraySpec(name=name, dtype="float32", shape=SHAPE) for name in ("a", "b"))
    intake = Intake(
        convert={name: ScaledUp(array=name, scales=f"{name}.scale", block=BLOCK) for name in ("a", "b")},
        extra=("*.scale",),
    )
    store, target = Counting(), MemoryStore()
    with small_chunks(16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(resharded, "SCALES_BYTES", kept_bytes)
        commit = open_commit(store, save(store, Layout(mesh=Mesh(), arrays=specs), arrays, step=5).ref)
        store.num_reads.clear()
        layout = Layout(mesh=Mesh(dp=2, edp=2), arrays=wanted)
        record = rewrite(
            store, commit, target, layout, intake=intake, block_bytes=block_bytes, num_together=num_together
        )
        num_reads = max(num for (key, _), num in store.num_reads.items() if ".scale/" in key)
        assert num_reads == 1 or kept_bytes <= 50
        made = open_commit(target, record.ref)
        for name in ("a", "b"):
            expected = arrays[name].astype(np.float32) * blocks_of(arrays[f"{name}.scale"])
            assert raw_bytes(read_array(target, made, name)) == raw_bytes(expected)
