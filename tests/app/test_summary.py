"""What the end of a run says of its newest checkpoint, which is read back: also when the store cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import pytest
from msgspec.structs import replace

from behemoth.app.summary import LedgerTable, Summary, read_back, seen_again
from behemoth.base.errors import Corrupt, Invalid, NotFound, Unavailable
from behemoth.base.ids import RunUid, Step
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.reader import digest
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout
from reconcile.player import ref

URL = "/mnt/shared/tiny"
KNOWN = (ref(10, "a1-1"), ref(20, "a1-2"))


def stored() -> MemoryStore:
    store = MemoryStore()
    take(store, Owner.of_run(RunUid("uid"), name="tiny", directory="/runs/tiny"), url=URL)
    for commit in KNOWN:
        save(store, small_layout(), step=commit.step, write_id=commit.write_id)
    return store


class Away(MemoryStore):
    """A server that does not answer."""

    def list(self, prefix: str) -> NoReturn:
        raise Unavailable(f"list {prefix}: no whole answer from the store")


def never() -> bool:
    return False


def test_the_digest_is_that_of_the_newest_checkpoint() -> None:
    store = stored()
    found = read_back(store, KNOWN, url=URL, cancelled=never)
    assert found.newest is not None
    assert (found.newest.step, found.trouble) == (20, "")
    assert found.digest == f"sha256:{digest(store, open_commit(store, found.newest))}"


def test_a_run_that_has_committed_nothing_has_no_digest_and_no_trouble() -> None:
    assert read_back(MemoryStore(), (), url=URL, cancelled=never) == (None, None, "")


@pytest.mark.parametrize(
    ("store", "trouble"),
    [
        (MemoryStore(), "expected the store of a run, got a place without one"),
        (Away(), "no whole answer from the store"),
    ],
)
def test_a_store_that_is_away_is_told_and_the_checkpoint_is_not_called_missing(
    store: MemoryStore, trouble: str
) -> None:
    found = read_back(store, KNOWN, url=URL, cancelled=never)
    assert (found.newest, found.digest) == (KNOWN[-1], None)
    assert trouble in found.trouble


def test_a_checkpoint_that_is_missing_from_a_store_that_is_there_is_told() -> None:
    store = stored()
    store.delete([commit_key(commit.step) for commit in KNOWN])
    found = read_back(store, KNOWN, url=URL, cancelled=never)
    assert found.trouble == f"checkpoint store {URL}: expected the checkpoint of step 20, got none"


def test_damage_in_a_store_that_is_there_is_an_error() -> None:
    store = stored()
    newest = read_back(store, KNOWN, url=URL, cancelled=never).newest
    assert newest is not None
    shards = [info.key for info in store.list("steps") if "a1-2" in info.key and "/c/" in info.key]
    store.delete(shards[:1])
    with pytest.raises((Corrupt, NotFound)):
        read_back(store, KNOWN, url=URL, cancelled=never)


ENDED = Summary(
    name="tiny",
    outcome="succeeded",
    reason="all 20 steps are done and committed",
    step=Step(20),
    total_steps=Step(20),
    num_attempts=1,
    digest="sha256:of step 20",
    ledger=LedgerTable(
        wall_s=1,
        num_ranks=1,
        useful_s=1,
        checkpoint_stall_s=0,
        detect_s=0,
        restart_s=0,
        restore_s=0,
        recomputed_s=0,
        idle_s=0,
    ),
    faults=(),
    num_faults=0,
    restores=(),
    checkpoints=(),
)


def test_an_ended_run_keeps_its_digest_while_its_newest_checkpoint_is_there() -> None:
    assert seen_again(ENDED, nullcontext(stored()), url=URL) == ENDED
    nothing = replace(ENDED, digest=None, step=Step(0))
    assert seen_again(nothing, nullcontext(MemoryStore()), url=URL) == nothing


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda store: store.delete([commit_key(KNOWN[-1].step)]), "step 20, got that of step 10 as the newest"),
        (lambda store: store.delete([commit_key(one.step) for one in KNOWN]), "step 20, got none"),
        (lambda store: store.delete([info.key for info in store.list("")]), "got a place without one"),
    ],
)
def test_an_ended_run_says_what_is_wrong_with_its_store_in_place_of_the_digest(
    change: Callable[[MemoryStore], None], trouble: str
) -> None:
    store = stored()
    change(store)
    found = seen_again(ENDED, nullcontext(store), url=URL)
    assert (found.digest, found.outcome) == (None, "succeeded")
    assert trouble in found.digest_trouble


def test_an_ended_run_whose_store_does_not_answer_says_so() -> None:
    assert "no whole answer" in seen_again(ENDED, nullcontext(Away()), url=URL).digest_trouble


def _opened() -> MemoryStore:
    raise Invalid("s3://bucket: expected a region, got none")


@contextmanager
def refused() -> Iterator[MemoryStore]:
    """As a bucket of which nobody says the region."""
    yield _opened()


def test_an_ended_run_whose_store_cannot_be_opened_says_so() -> None:
    assert "expected a region" in seen_again(ENDED, refused(), url=URL).digest_trouble
