"""torch's own use of DCP on real gloo worlds: saved by four ranks, loaded by two and three, and killed in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tensorstore
import torch

from behemoth.checkpoint.commit_log import commits, latest
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import write_of_key
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.dcp.contents import Contents
from behemoth.dcp.foreign import read_dcp
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from checkpoint.interop.imported import import_tensors
from dcp.programs import told_by

STATES = ("fsdp", "tensor_parallel_fsdp", "hybrid_fsdp", "placements", "dtypes")
SAVED = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = told_by("resharding_program", str(folder))
    return found


def newest(store: LocalStore) -> CommitRef:
    ref = latest(store)
    assert ref is not None
    return ref


@pytest.fixture
def placements(folder: Path, told: dict[str, Any]) -> Iterator[LocalStore]:  # noqa: ARG001  it makes the folder's files
    with closing(LocalStore(folder / "placements")) as store:
        yield store


@pytest.mark.parametrize("name", [*STATES, "async"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_what_four_ranks_saved_is_loaded_by_others_as_torchs_own_dcp_loads_it(
    told: dict[str, Any], name: str, num_ranks: int
) -> None:
    ranks = told[f"load on {num_ranks}"]
    assert len(ranks) == num_ranks
    for rank in ranks:
        assert rank[name]["differ"] == []
    assert any(rank[name]["loaded"] for rank in ranks)


def test_model_optimizer_and_values_all_come_out_of_the_checkpoint(told: dict[str, Any]) -> None:
    loaded = told["load on 2"][0]["fsdp"]["loaded"]
    assert {"/app/model/0.weight", "/app/optim/state/2.bias/exp_avg_sq", "/step", "/names"} <= set(loaded)
    assert "/app/optim/param_groups/0/lr" in loaded


def test_a_save_of_which_a_rank_is_killed_is_no_checkpoint_and_the_one_before_loads(
    folder: Path, told: dict[str, Any]
) -> None:
    with closing(LocalStore(folder / "killed")) as store:
        found = commits(store)
        writes = {write_of_key(info.key) for info in store.list("steps")}
    assert [one.step for one in found] == [0]
    assert {write[0] for write in writes if write} == {0, 1}, "the second save did write something"
    assert told["load on 2"][0]["killed"]["differ"] == []


@pytest.mark.parametrize("name", [*STATES, "async", "killed"])
def test_every_bit_of_what_ranks_wrote_together_is_verified(folder: Path, told: dict[str, Any], name: str) -> None:  # noqa: ARG001
    with closing(LocalStore(folder / name)) as store:
        report = verify(store, newest(store), deep=True, threads=2)
    assert report.problems == ()
    assert report.num_chunks > 0


def test_column_cuts_become_chunk_boundaries_and_row_cuts_do_not(placements: LocalStore) -> None:
    layout = open_commit(placements, newest(placements)).layout
    arrays = {array.name: array for array in layout.arrays}
    assert arrays["columns"].packed == (1, (12, 12, 12, 12))
    assert arrays["line.0"].packed is None
    assert layout.mesh.num_ranks == 4


def test_tensorstore_reads_what_four_ranks_cut_in_two_dims(folder: Path, placements: LocalStore) -> None:
    torch.manual_seed(SAVED)
    expected = torch.randn(6, 5, 7)
    path = folder / "placements" / newest_prefix(placements) / "grid.0"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    read = tensorstore.open(spec, open=True, read=True).result().read().result()
    assert read.tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("name", STATES)
def test_an_import_of_torchs_own_checkpoint_holds_what_our_writer_saved(
    folder: Path,
    told: dict[str, Any],  # noqa: ARG001
    tmp_path: Path,
    name: str,
) -> None:
    with closing(LocalStore(folder / "torch" / name)) as given, closing(LocalStore(tmp_path)) as store:
        state = read_dcp(given, threads=2)
        import_tensors(store, state.tensors)
        imported = arrays_of(store)
    with closing(LocalStore(folder / name)) as store:
        saved = arrays_of(store)
    assert imported.keys() == saved.keys()
    assert Contents.decode(imported.pop("state/dcp")) == Contents.decode(saved.pop("state/dcp"))
    assert imported == saved


@pytest.mark.longer
def test_processes_save_what_was_staged_while_training_goes_on(tmp_path: Path) -> None:
    assert told_by("process_program", str(tmp_path)) == [{"same": True}, {"same": True}]
    with closing(LocalStore(tmp_path)) as store:
        assert [one.step for one in commits(store)] == [1, 2]


def arrays_of(store: LocalStore) -> dict[str, bytes]:
    commit = open_commit(store, newest(store))
    return {array.name: read_array(store, commit, array.name).tobytes() for array in commit.layout.arrays}


def newest_prefix(store: LocalStore) -> str:
    return open_commit(store, newest(store)).record.prefix
