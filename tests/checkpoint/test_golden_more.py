"""A golden checkpoint with all that those of `test_format` lack is written bit for bit, and read by everybody.

Set BEHEMOTH_UPDATE_GOLDEN=1 to write it anew; a change there breaks old checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.framing import unframed
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import raw_bytes, save
from checkpoint.golden_more import (
    BLANK_RANK,
    DCP_RECORD,
    FROZEN,
    MESH,
    MORE,
    RUN_RECORD,
    STEP,
    more_arrays,
    more_layout,
    rank_record,
)
from checkpoint.independent_reader import floats, newest, read_checkpoint, record_of
from checkpoint.restored import held_on, restored_on
from checkpoint.test_foreign_readers import TENSORSTORE
from checkpoint.test_format import files_of, same_bits


def write_more(root: Path) -> None:
    with closing(LocalStore(root)) as store:
        save(store, more_layout(), more_arrays(), step=STEP, frozen=FROZEN)


def test_the_engine_still_writes_it_bit_for_bit(tmp_path: Path) -> None:
    write_more(tmp_path)
    if os.environ.get("BEHEMOTH_UPDATE_GOLDEN"):
        shutil.rmtree(MORE, ignore_errors=True)
        shutil.copytree(tmp_path, MORE)
    assert files_of(tmp_path) == files_of(MORE)


def test_it_has_a_gap_between_chunks_padding_and_a_print_of_each_rank() -> None:
    layout = more_layout()
    large = grids(layout)[layout.positions["large"]]
    assert (large.num_chunks, large.gap_bytes, large.data_bytes(1)) == (2, 4092, large.payload_bytes // 2)
    commit = json.loads(unframed((MORE / f"commits/{STEP:09d}.json").read_bytes(), name="commit"))
    assert (commit["format"], commit["required_features"]) == ({"major": 1, "minor": 0}, [])
    prints = [commit["held_prints"][8 * rank : 8 * rank + 8] for rank in range(MESH.num_ranks)]
    assert len(commit["held_prints"]) == 8 * MESH.num_ranks
    assert "00000000" not in prints
    assert len(set(prints)) > 1
    assert {array["name"] for array in commit["arrays"] if array["is_zero"]} == {"zeros"}


def test_the_engine_still_reads_it_as_arrays_and_onto_meshes() -> None:
    arrays = more_arrays()
    with closing(LocalStore(MORE)) as store:
        ref = latest(store)
        assert ref is not None
        commit = open_commit(store, ref)
        assert same_bits({name: read_array(store, commit, name) for name in commit.layout.positions}, dict(arrays))
        assert verify(store, ref, threads=1, deep=True).is_intact
        for mesh in (MESH, Mesh(tp=4, dp=2, ep=4, edp=2)):
            layout, held = restored_on(store, ref, mesh)
            assert held == held_on(layout, arrays)


def test_the_independent_reader_reads_it_with_its_records() -> None:
    assert newest(MORE) == STEP
    found = read_checkpoint(MORE, STEP)
    assert same_bits(found, dict(more_arrays()))
    assert record_of(found["state/run"]) == RUN_RECORD
    assert [record_of(row) for row in found["state/ranks"]] == [
        None if rank == BLANK_RANK else rank_record(rank) for rank in range(MESH.num_ranks)
    ]
    assert record_of(found["state/dcp"]) == DCP_RECORD


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_the_independent_reader_knows_the_numbers_that_numpy_does_not(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype="<u2") if dtype == "bfloat16" else np.arange(256, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        expected = bits.view(getattr(ml_dtypes, dtype)).astype(np.float64)
    assert np.array_equal(floats(bits, dtype), expected, equal_nan=True)


def test_tensorstore_with_nothing_of_ours_reads_it(tmp_path: Path) -> None:
    layout, folder = more_layout(), MORE / step_prefix(Step(STEP), WriteId("a1-1"))
    lines = [f"{folder / path}\t{tmp_path / str(number)}" for number, path in enumerate(layout.paths)]
    command = [sys.executable, "-I", "-c", TENSORSTORE]
    subprocess.run(command, input="\n".join(lines), text=True, check=True, timeout=120)
    for number, spec in enumerate(layout.arrays):
        head, _, data = (tmp_path / str(number)).read_bytes().partition(b"\n")
        assert head.decode() == f"{spec.dtype} {list(spec.shape)}"
        assert data == raw_bytes(more_arrays()[spec.name]), spec.name
