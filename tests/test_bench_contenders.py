"""The baselines of the checkpoint benchmark do what they are timed for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contenders import peer as peer_module
from contenders.peer import load_peers
from contenders.raw import Raw
from contenders.state import new_state, restored
from sections.blocking import AsyncDcp

SHAPES = {"a": (3, 1024), "b": (1024,)}


@pytest.mark.parametrize("is_shared", [False, True])
def test_raw_writes_every_byte_and_reads_it_back(tmp_path: Path, is_shared: bool) -> None:
    state = new_state(SHAPES)
    whole = bytes(state.memory)
    raw = Raw(state.memory, tmp_path / "raw", num_threads=2, is_direct=False, is_shared=is_shared)
    raw.write()
    files = sorted((tmp_path / "raw").iterdir())
    assert len(files) == (1 if is_shared else 2)
    assert b"".join(path.read_bytes() for path in files) == whole
    state.memory[:] = bytes(len(whole))
    raw.read()
    assert bytes(state.memory) == whole


def test_raw_does_not_take_a_short_file_for_a_whole_one(tmp_path: Path) -> None:
    state = new_state(SHAPES)
    raw = Raw(state.memory, tmp_path / "raw", num_threads=2, is_direct=False)
    raw.write()
    (tmp_path / "raw" / "part-1").write_bytes(b"short")
    with pytest.raises(SystemExit, match="expected 8192 bytes"):
        raw.read()


def test_a_restore_that_brings_nothing_back_ends_the_benchmark() -> None:
    state = new_state(SHAPES)
    with pytest.raises(SystemExit, match="did not bring back"):
        restored(state.arrays, lambda: None)


def test_a_restore_may_return_arrays_of_its_own() -> None:
    state = new_state(SHAPES)
    copies = {name: array.copy() for name, array in state.arrays.items()}
    assert restored(state.arrays, lambda: copies) >= 0
    assert all(np.array_equal(state.arrays[name], copies[name]) for name in copies)


def test_a_peer_that_is_not_installed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peer_module.FAMILIES, "no_such_files", ("nobody",))
    found, missing = load_peers(["nobody"], num_threads=1)
    assert (found, [one.name for one in missing]) == ([], ["nobody"])
    assert "no_such_files" in missing[0].why


def test_dcp_at_its_best_copies_every_save_into_the_memory_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = AsyncDcp(new_state(SHAPES).arrays, tmp_path / "dcp", num_threads=1)
    staged: list[dict[str, Any]] = []  # they live until the end, so that no address is that of freed memory
    stage = peer.kept.stage

    def watched(state: dict[str, Any]) -> dict[str, Any]:
        found = stage(state)
        assert isinstance(found, dict)
        staged.append(found)
        return found

    monkeypatch.setattr(peer.kept, "stage", watched)
    try:
        for _ in range(2):
            assert peer.best()["blocked"] > 0
    finally:
        peer.close()
    first, second = ([tensor.data_ptr() for tensor in one["state"].values()] for one in staged)
    assert first == second
