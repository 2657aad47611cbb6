"""DCP on a real S3 server: saved by four ranks and loaded by three, replaced, killed halfway, and what that leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import write_of_key
from behemoth.checkpoint.verify import verify
from behemoth.dcp.object_parts import PART_BYTES
from behemoth.dcp.orders import PIECES
from behemoth.state.effect import CommitRef
from behemoth.storage.s3 import S3Store
from behemoth.storage.s3_place import S3Place
from dcp.programs import told_by
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in, opened

PREFIX = "dcp worlds"
STATES = ("fsdp", "large")
MORE = ("tensor_parallel_fsdp", "placements", "dtypes")

Place = Callable[[str], AbstractContextManager[S3Store]]
"""Opens the store of one of the states."""


@pytest.fixture(scope="module")
def told(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return told_of(STATES, s3, tmp_path_factory.mktemp("torch"))


@pytest.fixture
def place(s3: S3Server, told: Any, monkeypatch: pytest.MonkeyPatch) -> Place:  # noqa: ARG001  it fills the bucket
    let_in(monkeypatch, s3)
    return store_of


def told_of(states: Sequence[str], s3: S3Server, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        let_in(patch, s3)
        return told_by("bucket_program", f"s3://{BUCKET}/{PREFIX}", str(folder), *states)


def store_of(name: str) -> AbstractContextManager[S3Store]:
    return opened(S3Place(bucket=BUCKET, prefix=f"{PREFIX}/{name}", endpoint=None))


def refs(store: S3Store) -> list[CommitRef]:
    return [one for one in commits(store) if isinstance(one, CommitRef)]


@pytest.mark.parametrize("name", [*STATES, "async", "replaced", "killed"])
def test_what_four_ranks_saved_is_loaded_by_three_as_torchs_own_dcp_loads_it(told: Any, name: str) -> None:
    ranks = told["load"]
    assert [rank[name]["differ"] for rank in ranks] == [[], [], []]
    assert any(rank[name]["loaded"] for rank in ranks)


@pytest.mark.parametrize("name", [*STATES, "async", "replaced"])
def test_a_bucket_holds_whole_checkpoints_and_nothing_else(place: Place, name: str) -> None:
    check_whole(place, name)


@pytest.mark.longer
def test_states_of_every_cut_and_dtype_go_through_a_bucket(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_of(MORE, s3, tmp_path)
    let_in(monkeypatch, s3)
    for name in MORE:
        assert [rank[name]["differ"] for rank in told["load"]] == [[], [], []]
        check_whole(store_of, name)


@pytest.mark.longer
def test_processes_save_into_a_bucket_what_was_staged(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    told = told_by("process_program", f"s3://{BUCKET}/{PREFIX}/processes")
    assert told == [{"same": True}, {"same": True}]
    with store_of("processes") as store:
        assert [ref.step for ref in refs(store)] == [1, 2]


def check_whole(place: Place, name: str) -> None:
    """One checkpoint, all of whose bytes are right, and nothing that was left behind."""
    with place(name) as store:
        (ref,) = refs(store)
        assert verify(store, ref, deep=True, threads=2).problems == ()
        writes = {write_of_key(info.key) for info in store.list("steps")}
        assert writes == {(ref.step, ref.write_id)}
        assert not [info.key for info in store.list("steps") if PIECES in info.key.split("/")]
        assert list(store.list_uploads("")) == []
        assert list(store.list("rejected")) == []
        assert list(store.list("deleting")) == []


def test_equal_rows_are_objects_of_one_rank_each_and_others_are_shared_in_parts(place: Place) -> None:
    with place("large") as store:
        (ref,) = refs(store)
        commit = open_commit(store, ref)
        sizes = {info.key.removeprefix(f"{commit.record.prefix}/"): info.size_bytes for info in store.list("steps")}
    objects = {name: [key for key in sizes if key.startswith(f"{name}/c")] for name in ("even", "uneven", "alone")}
    assert {name: len(keys) for name, keys in objects.items()} == {"even": 4, "uneven": 1, "alone": 1}
    assert all(sizes[key] > PART_BYTES for keys in objects.values() for key in keys)
    assert commit.record.required_features == ("box-shards",)


def test_a_checkpoint_that_must_stay_is_not_replaced(told: Any) -> None:
    assert all("expected none, got one" in rank["refused"] for rank in told["replace"])


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_with_gc(place: Place) -> None:
    with place("killed") as store:
        found = refs(store)
        assert [ref.step for ref in found] == [0, 1], "the save after the killed one took its step"
        left = [info for info in store.list("steps") if write_of_key(info.key) not in set(map(_write, found))]
        assert left, "the killed save did write something"
        assert list(store.list_uploads("steps")), "and had uploads under way"
        execute(store, plan_gc(store, in_flight=()))
        assert {write_of_key(info.key) for info in store.list("steps")} == set(map(_write, found))
        assert list(store.list_uploads("")) == []
        for ref in found:
            assert verify(store, ref, deep=True, threads=2).problems == ()


def _write(ref: CommitRef) -> tuple[Any, Any]:
    return ref.step, ref.write_id
