"""What a check makes of workers that see the checkpoint otherwise than the process that drives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import StringIO

import pytest

from behemoth.base.errors import BehemothError, Corrupt, NotFound
from behemoth.checkpoint.chunk_check import Found, Shard, SlotRange
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.verify import Spread
from behemoth.testing.store import MemoryStore
from behemoth_cli.commands.checking import Checked, MakeSpread, checked
from behemoth_cli.out.console import Console
from checkpoint.saved_checkpoint import save, small_layout

DAMAGED = Corrupt("steps/000000010-a1-10/index: expected the CRC of its bytes, got another")
GONE = NotFound("commit of step 10, write 'a1-10': expected it in the store, got none any more")


def failing(error: BehemothError, before: Callable[[], object] = lambda: None) -> MakeSpread:
    """Workers that cannot open the checkpoint."""

    def found() -> Found:
        raise error

    def spread(_record: CommitRecord, _shards: Sequence[Shard], _spans: Sequence[SlotRange]) -> Iterator[Found]:
        before()
        yield found()

    def make(_progress: Callable[[int, int], None]) -> Spread:
        return spread

    return make


def outcome(store: MemoryStore, spread: MakeSpread | None) -> tuple[Checked, str]:
    told = StringIO()
    console = Console(StringIO(), told, environment={})
    reports = checked(store, commits(store), console, threads=1, deep=True, spread=spread)
    return reports, told.getvalue()


def two_commits() -> MemoryStore:
    store = MemoryStore()
    for step in (10, 20):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    return store


@pytest.mark.parametrize("error", [DAMAGED, GONE], ids=["damaged", "gone"])
def test_what_a_worker_could_not_open_is_checked_here_and_said(error: BehemothError) -> None:
    reports, told = outcome(two_commits(), failing(error))
    assert [report.num_chunks > 0 for _, report in reports] == [True, True]
    for step in (10, 20):
        assert f"warning: checkpoint/{step} is checked by this process alone" in told
    assert told.count(error.message) == 2


def test_damage_that_a_worker_alone_finds_stays_damage_and_a_store_that_it_does_not_have_is_none() -> None:
    reports, _ = outcome(two_commits(), failing(DAMAGED))
    for _, report in reports:
        (problem,) = report.problems
        assert (problem.kind, DAMAGED.message in problem.message) == ("unreadable", True)
    reports, _ = outcome(two_commits(), failing(GONE))
    assert all(report.is_intact for _, report in reports)


def test_damage_that_both_find_is_told_once() -> None:
    store = two_commits()

    def damage() -> None:
        store.delete(["steps/000000010-a1-10/index"])

    reports, _ = outcome(store, failing(DAMAGED, damage))
    assert [problem.kind for problem in reports[0][1].problems] == ["missing"]


def test_of_a_checkpoint_that_retention_has_deleted_no_warning_is_given() -> None:
    store = two_commits()
    reports, told = outcome(
        store, failing(GONE, lambda: store.delete([commit_key(one.step) for one in commits(store) if one.step]))
    )
    assert list(reports) == []
    assert "warning" not in told
    assert "checkpoint/10 was deleted while it was read: left out" in told
