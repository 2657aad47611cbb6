"""An index speaks for the metadata and the arrays of its own layout, all of them and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.commit_index import CommitIndex, described, metadata_objects
from checkpoint.saved_checkpoint import small_layout

LAYOUT = small_layout()
INDEX = CommitIndex(
    layout=LAYOUT, metadata=described(metadata_objects(LAYOUT)), content_crcs=tuple(range(len(LAYOUT.arrays)))
)


def test_an_index_comes_back_as_it_was() -> None:
    assert CommitIndex.decode(INDEX.encode()) == INDEX


@pytest.mark.parametrize(
    "change",
    [
        lambda index: replace(index, metadata=index.metadata[1:]),
        lambda index: replace(index, metadata=(*index.metadata, index.metadata[0])),
        lambda index: replace(index, metadata=(replace(index.metadata[0], key="zarr"), *index.metadata[1:])),
        lambda index: replace(index, content_crcs=index.content_crcs[1:]),
        lambda index: replace(index, content_crcs=(*index.content_crcs, 0)),
    ],
)
def test_one_of_another_layout_is_damage(change: Callable[[CommitIndex], CommitIndex]) -> None:
    with pytest.raises(Corrupt, match="expected the metadata of its layout, got others") as caught:
        CommitIndex.decode(change(INDEX).encode())
    assert caught.value.code == "index-layout"


def test_one_of_a_newer_release_is_refused() -> None:
    newer = {**msgspec.msgpack.decode(INDEX.encode()), "version": 2}
    with pytest.raises(Invalid, match="index: expected version 1, got 2") as caught:
        CommitIndex.decode(msgspec.msgpack.encode(newer))
    assert "upgrade" in caught.value.hint
