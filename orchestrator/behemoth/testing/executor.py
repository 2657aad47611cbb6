"""Conformance suite of the Executor port: what any adapter must do with the suite's own jobs.

A test class inherits `ExecutorConformance` and gives it an `executor` fixture whose workers know the jobs of
`batch_program`. Adapters live in `behemoth.app.batches`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.base.errors import BehemothError, Denied, Invalid
from behemoth.ports import Batch, Executor

LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""


def doubles(numbers: range) -> list[Batch]:
    """Batches that double their number."""
    return [Batch(number=number, data=f"double {number}".encode()) for number in numbers]


class ExecutorConformance:
    """Inherit, and provide `executor`: one that nobody has used, and that is closed afterwards."""

    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        raise NotImplementedError

    def test_every_batch_gives_one_result_whatever_the_order(self, executor: Executor, tmp_path: Path) -> None:
        found = list(executor.run(str(tmp_path).encode(), doubles(range(100))))
        assert {result.number: result.data for result in found} == {n: str(2 * n).encode() for n in range(100)}
        assert len(found) == 100

    def test_jobs_follow_one_another_and_each_is_closed(self, executor: Executor, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            assert len(list(executor.run(str(tmp_path / name).encode(), doubles(range(5))))) == 5
        executor.close()
        assert (tmp_path / "one" / "closed").exists()

    def test_no_batch_is_no_work(self, executor: Executor, tmp_path: Path) -> None:
        assert list(executor.run(str(tmp_path).encode(), [])) == []

    def test_few_batches_are_taken_before_results_come(self, executor: Executor, tmp_path: Path) -> None:
        taken: list[int] = []

        def batches() -> Iterator[Batch]:
            for batch in doubles(range(1000)):
                taken.append(batch.number)
                yield batch

        results = executor.run(str(tmp_path).encode(), batches())
        next(results)
        assert len(taken) <= 32
        assert len(list(results)) == 999

    def test_the_error_of_a_batch_is_raised_as_it_was(self, executor: Executor, tmp_path: Path) -> None:
        with pytest.raises(Denied, match="expected a key, got none") as caught:
            list(executor.run(str(tmp_path).encode(), [*doubles(range(2)), Batch(number=2, data=b"fail ")]))
        assert (caught.value.hint, caught.value.code) == ("bring one", "suite-denied")

    def test_a_bug_in_a_batch_is_an_error_too(self, executor: Executor, tmp_path: Path) -> None:
        with pytest.raises((BehemothError, ZeroDivisionError), match="a bug"):
            list(executor.run(str(tmp_path).encode(), [Batch(number=0, data=b"bug ")]))

    def test_a_job_after_one_that_failed_gets_its_own_results_alone(self, executor: Executor, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        failing = [Batch(number=number, data=b"nap ") for number in range(30)]
        failing.insert(1, Batch(number=30, data=b"fail "))
        with pytest.raises(Denied):
            list(executor.run(str(tmp_path / "one").encode(), failing))
        found = list(executor.run(str(tmp_path / "two").encode(), doubles(range(30))))
        assert sorted((result.number, result.data) for result in found) == [(n, str(2 * n).encode()) for n in range(30)]

    def test_a_job_that_cannot_be_opened_is_refused(self, executor: Executor, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="expected a folder") as caught:
            list(executor.run(str(tmp_path / "nothing").encode(), doubles(range(3))))
        assert caught.value.code == "suite-job"

    def test_a_bug_in_opening_a_job_is_an_error_too(self, executor: Executor, tmp_path: Path) -> None:
        with pytest.raises((BehemothError, ZeroDivisionError), match="a bug"):
            list(executor.run(str(tmp_path / "bug").encode(), doubles(range(3))))

    def test_of_a_job_that_is_given_up_what_was_complete_is_told_and_what_is_large_ends_soon(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        """A caller leaves behind the first of two results, while a third batch goes on and on."""
        folder, after = tmp_path / "one", tmp_path / "two"
        for one in (folder, after):
            one.mkdir()
        results = executor.run(str(folder).encode(), [*doubles(range(2)), Batch(number=2, data=b"hold ")])
        found = {(first := next(results)).number: first.data}
        deadline_s = time.monotonic() + LIMIT_S
        while not all((folder / name).exists() for name in ("double-0.0", "double-1.0", "hold-.0")):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        found |= {one.number: one.data for one in executor.stop()}
        assert found == {0: b"0", 1: b"2"}
        assert (folder / "hold-gave-up").exists()
        assert executor.stop() == []
        assert len(list(executor.run(str(after).encode(), doubles(range(5))))) == 5

    def test_closing_twice_and_in_the_middle_of_a_job_is_fine(self, executor: Executor, tmp_path: Path) -> None:
        next(executor.run(str(tmp_path).encode(), doubles(range(50))))
        executor.close()
        executor.close()
