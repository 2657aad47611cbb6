"""A small state, what a store has of it, and planners that break or do something in the middle of a save."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from behemoth.base.errors import BehemothError
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.paths import write_of_key
from behemoth.dcp import BehemothReader
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from dcp.trees import blank, load


def state_of(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "model": {"weight": torch.randn(33, 17), "scale": torch.tensor(float(seed)), "none": torch.empty(0, 4)},
        "optim": {"betas": (0.9, 0.1 * seed), "moments": [torch.randn(5).bfloat16()], "name": f"adam{seed}"},
    }


def loaded(path: Path | str, like: dict[str, Any], **options: Any) -> dict[str, Any]:
    return load(blank(like), storage_reader=BehemothReader(path, **options))


def refs(path: Path) -> list[CommitRef]:
    with closing(LocalStore(path)) as store:
        return [one for one in commits(store) if isinstance(one, CommitRef)]


def writes(path: Path) -> set[Any]:
    with closing(LocalStore(path)) as store:
        return {write_of_key(info.key) for info in store.list("steps")}


def refusal(error: CheckpointException) -> BehemothError:
    (failure,) = error.failures.values()
    assert isinstance(failure[0], BehemothError)
    return failure[0]


class Failing(DefaultSavePlanner):
    """Breaks at a tensor, after others were written."""

    def resolve_data(self, write_item: Any) -> torch.Tensor | io.BytesIO:
        if write_item.index.fqn == "optim.moments.0":
            raise OSError("device lost")
        return super().resolve_data(write_item)


class Meanwhile(DefaultSavePlanner):
    """Does something while the save is under way."""

    def __init__(self, deed: Callable[[], object]) -> None:
        super().__init__()
        self._deeds = [deed]

    def resolve_data(self, write_item: Any) -> torch.Tensor | io.BytesIO:
        while self._deeds:
            self._deeds.pop()()
        return super().resolve_data(write_item)
