"""What the golden checkpoint `golden/more` holds: all that the format has and the goldens of its versions lack.

Every dtype; a gap between two chunks, and padding behind the second; prints of what ranks held; records of the ranks,
one of them blank; what torch.distributed.checkpoint has beside its tensors; arrays of a stage, in rows, in a bucket,
all zero. Neighbour: `test_golden_more`, which says how it is written and read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.records import Value, encode_record, rank_records_spec, record_size_bytes, run_record_spec
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import Logical

MORE = Path(__file__).parent / "golden" / "more"
STEP = 120
MESH = Mesh(tp=2, dp=2, pp=2, ep=2, edp=2)
FROZEN = ("stage/one",)
RUN_RECORD: Value = {"cursor": 12, "seed": [7, b"x", 0.5, None]}
BLANK_RANK = 5
CAPACITY_BYTES = 64
DCP_RECORD: Value = {
    "version": 1,
    "values": {
        "betas": {"%tuple": [0.9, {"%complex": [0.5, -1.0]}]},
        "by number": {"%dict": [[1, {"%set": [2, 3]}]]},
        "large": {"%int": str(1 << 70)},
        "odd": {"%str": b"a\xed\xb2\x80"},
        "array": {"%ndarray": {"dtype": "<i2", "shape": [2], "data": b"\x01\x00\xff\xff"}},
        "scalar": {"%scalar": {"dtype": "<f4", "data": b"\x00\x00\x80\x3f"}},
        "plain": {"nested": [None, True, "text", b"bytes"]},
    },
    "pickled": {},
    "empty": {"none": {"dtype": "bfloat16", "shape": [0, 4]}},
    "paths": {"plain": ["optim", 0, "plain"]},
}


def rank_record(rank: int) -> Value:
    """Of one rank: random number states, say."""
    return {"rank": rank, "state": bytes(range(rank))}


def more_layout() -> Layout:
    """Eight ranks."""
    arrays = [ArraySpec(name=f"dtype/{name}", dtype=name, shape=(4, 3), dims=((0, "tp"),)) for name in DTYPES]
    arrays += [
        ArraySpec(name="large", dtype="uint8", shape=(3, 1 << 19), dims=((0, "tp"),)),
        ArraySpec(name="optim/bucket", dtype="float32", shape=(5,), flat_over="dp", flat_bucket=(3, 12)),
        ArraySpec(name="optim/rows", dtype="float32", shape=(5, 2), flat_over="dp", flat_rows=True),
        ArraySpec(name="stage/one", dtype="int32", shape=(2, 3), stage=1),
        ArraySpec(name="zeros", dtype="float16", shape=(2, 2), may_be_zero=True),
        run_record_spec(CAPACITY_BYTES),
        rank_records_spec(MESH.num_ranks, CAPACITY_BYTES),
        ArraySpec(name="state/dcp", dtype="uint8", shape=(record_size_bytes(DCP_RECORD),)),
    ]
    return Layout(mesh=MESH, arrays=tuple(arrays))


def more_arrays() -> Logical:
    """Bytes that follow from the place alone, so that they need no generator."""
    layout = more_layout()
    arrays = {
        spec.name: (np.arange(spec.num_bytes) % 101 + 1).astype(np.uint8).view(DTYPES[spec.dtype]).reshape(spec.shape)
        for spec in layout.arrays
    }
    arrays["dtype/bool"] = np.arange(12).reshape(4, 3) % 3 == 0
    arrays["zeros"] = np.zeros((2, 2), np.float16)
    rows = [
        bytes(CAPACITY_BYTES) if rank == BLANK_RANK else encode_record(rank_record(rank), CAPACITY_BYTES)
        for rank in range(MESH.num_ranks)
    ]
    return {
        **arrays,
        "state/run": np.frombuffer(encode_record(RUN_RECORD, CAPACITY_BYTES), np.uint8),
        "state/ranks": np.frombuffer(b"".join(rows), np.uint8).reshape(MESH.num_ranks, CAPACITY_BYTES),
        "state/dcp": np.frombuffer(encode_record(DCP_RECORD, record_size_bytes(DCP_RECORD)), np.uint8),
    }
