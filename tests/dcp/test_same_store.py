"""All ranks of a save write into one store: another folder, or another step, is told before a byte is written."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from behemoth.base.errors import Invalid
from behemoth.dcp import BehemothWriter
from behemoth.storage.local import LocalStore
from dcp.by_hand import planned
from dcp.saved import loaded, refs
from dcp.trees import same

STATE = {f"t{number}": torch.full((3,), float(number)) for number in range(4)}


def test_ranks_that_share_a_store_save_into_it_and_leave_no_mark(tmp_path: Path) -> None:
    save = planned([BehemothWriter(tmp_path / "step-3") for _ in range(2)], STATE)
    results = [save.write(rank) for rank in range(2)]
    assert all(results), "each rank has something to write"
    save.finish(results)
    assert same(loaded(tmp_path, STATE), STATE)
    with closing(LocalStore(tmp_path)) as store:
        assert not [info.key for info in store.list("steps") if "__" in info.key]


def test_a_rank_that_has_another_folder_under_its_path_writes_nothing_there(tmp_path: Path) -> None:
    """A disk of its node's own, for instance."""
    elsewhere = tmp_path / "node-1"
    save = planned([BehemothWriter(tmp_path / "node-0"), BehemothWriter(elsewhere)], STATE)
    save.write(0)
    with pytest.raises(Invalid, match=r"node-1: expected the one in which the coordinator began .* step 0") as caught:
        save.write(1)
    assert caught.value.code == "dcp-other-store"
    assert not list(elsewhere.rglob("c"))
    assert refs(tmp_path / "node-0") == []


def test_a_rank_that_was_given_another_step_is_refused(tmp_path: Path) -> None:
    save = planned([BehemothWriter(tmp_path / "step-3"), BehemothWriter(tmp_path / "step-4")], STATE)
    with pytest.raises(Invalid, match="expected step 3, which the coordinator of the save was given, got 4") as caught:
        save.write(1)
    assert caught.value.code == "dcp-ranks-differ"
