"""A save that dies at any of its writes: what was there loads, what is new is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, get_args

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.verify import verify
from behemoth.dcp import BehemothReader, BehemothWriter, reader, writer
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Fail, Fault, FaultyBucket, FaultyStore, When, every_death
from behemoth.testing.store import MemoryStore
from dcp.trees import blank, load, same, save


class SharedFiles(FaultyStore):
    """What the adapters open: one store in memory, behind faults. Closing it does nothing."""

    root = "/tmp"

    def close(self) -> None:
        pass


class SharedBucket(FaultyBucket):
    """The same, in which objects are uploaded."""

    def close(self) -> None:
        pass


Inner = MemoryStore | MemoryBucket
Kind = Literal["files", "bucket"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def shared_by(inner: Inner, *plan: Fault) -> SharedFiles | SharedBucket:
    return SharedBucket(inner, *plan) if isinstance(inner, MemoryBucket) else SharedFiles(inner, *plan)


@contextmanager
def opened(patch: pytest.MonkeyPatch, inner: Inner, *plan: Fault) -> Iterator[SharedFiles | SharedBucket]:
    shared = shared_by(inner, *plan)
    with patch.context() as here:
        here.setattr(writer, "_opened", lambda _: shared)
        here.setattr(writer, "probe_uploads", lambda *_args, **_options: None)  # it has crash points of its own
        here.setattr(reader, "open_store", lambda _: shared)
        yield shared


def state_of(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {"w": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "step": seed}


def save_step(step: int, seed: int) -> None:
    save(state_of(seed), storage_writer=BehemothWriter(f"store/step-{step}", threads=1))


def loaded(step: int) -> dict[str, Any] | None:
    try:
        return load(blank(state_of(0)), storage_reader=BehemothReader(f"store/step-{step}"))
    except CheckpointException:
        return None


def two_steps(patch: pytest.MonkeyPatch, kind: Kind) -> Inner:
    inner = MemoryStore() if kind == "files" else MemoryBucket()
    with opened(patch, inner):
        save_step(1, 1)
        save_step(2, 2)
    return inner


def num_writes(patch: pytest.MonkeyPatch, kind: Kind, step: int) -> int:
    with opened(patch, two_steps(patch, kind)) as shared:
        save_step(step, 3)
        return shared.num_writes


def deaths(patch: pytest.MonkeyPatch, kind: Kind, step: int) -> Iterator[Inner]:
    """The store as each death of that save leaves it."""
    for death in every_death(num_writes(patch, kind, step)):
        inner = two_steps(patch, kind)
        with opened(patch, inner, death), suppress(CheckpointException):
            save_step(step, 3)
        yield inner


def check_whole(patch: pytest.MonkeyPatch, inner: Inner) -> None:
    with opened(patch, inner):
        for ref in commits(inner):
            assert isinstance(ref, CommitRef)
            assert verify(inner, ref, threads=1, deep=True).problems == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_step_is_whole_or_not_there_wherever_its_save_dies(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    seen = set()
    for inner in deaths(monkeypatch, kind, 3):
        with opened(monkeypatch, inner):
            assert same(loaded(1), state_of(1))
            assert same(loaded(2), state_of(2))
            new = loaded(3)
        assert new is None or same(new, state_of(3))
        seen.add(new is None)
        check_whole(monkeypatch, inner)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_replaced_is_the_old_one_or_the_new_one_wherever_its_save_dies(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    seen = []
    for inner in deaths(monkeypatch, kind, 2):
        with opened(monkeypatch, inner):
            assert same(loaded(1), state_of(1))
            replaced = loaded(2)
        assert replaced is not None
        assert same(replaced, state_of(2)) or same(replaced, state_of(3))
        seen.append("old" if same(replaced, state_of(2)) else "new")
        check_whole(monkeypatch, inner)
    assert [kind for kind, before in zip(seen, [None, *seen], strict=False) if kind != before] == ["old", "new"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_fails_while_a_step_is_replaced_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    last = num_writes(monkeypatch, kind, 2)
    outcomes = set()
    for number in range(last):
        inner = two_steps(monkeypatch, kind)
        failure = Fail(write=number, when=When.BEFORE, error=Unavailable("the store is away"))
        try:
            with opened(monkeypatch, inner, failure):
                save_step(2, 3)
        except CheckpointException:
            outcomes.add("refused")
        with opened(monkeypatch, inner):
            got = loaded(2)
        assert got is not None, f"write {number} of {last}"
        assert same(got, state_of(2)) or same(got, state_of(3))
    assert outcomes == {"refused"}
