"""What an earlier call has left of a job counts only when it is a result of that very job: else an error that says what
to do, and never a raw trace, nor a checkpoint of which a part passes for checked or written and is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batches.test_writing import FIRST, SECOND, STEP, source, write, writing_to
from behemoth.app.batches.jobs import open_work
from behemoth.app.batches.record import Unrecorded
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.verify_job import check_in_batches, verify_job
from behemoth.app.batches.writing import require_written
from behemoth.base.errors import BehemothError, Corrupt
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.verify import Verification, verify
from behemoth.ports import Batch
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import MemoryStore
from checkpoint.interop.rewriting import new_bucket, small_parts
from checkpoint.mangled import mangled_bytes, mangled_document
from checkpoint.random_layouts import small_chunks
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.test_mangled import bounded

Stores = MemoryStore | MemoryBucket


class Kept(Unrecorded):
    """A record in memory, with the results of an earlier call."""

    def __init__(self, note: str = "", results: dict[int, bytes] | None = None) -> None:
        super().__init__(note)
        self.results = results or {}

    def done(self) -> dict[int, Batch]:
        return {number: Batch(number=number, data=data) for number, data in self.results.items()}

    def add(self, result: Batch) -> None:
        self.results[result.number] = result.data

    def forget(self, note: str) -> None:
        super().forget(note)
        self.results.clear()


def mangled(data: st.DataObject, results: dict[int, bytes]) -> dict[int, bytes]:
    """One of them."""
    number = data.draw(st.sampled_from(sorted(results)))
    document = msgspec.msgpack.decode(results[number])
    rubbish = mangled_document(document, encode=msgspec.msgpack.encode) | mangled_bytes(results[number])
    return {**results, number: data.draw(rubbish)}


class Verified:
    """A checkpoint in a folder that is verified in batches, and the results of that."""

    def __init__(self, folder: Path) -> None:
        self._store = LocalStore(folder)
        record = save(self._store, small_layout(), step=7, write_id="a1-1")
        assert record is not None
        self._ref: CommitRef = record.ref
        self._job = verify_job(str(folder), record.ref)
        kept = Kept()
        assert self.report(kept).is_intact
        self.results = kept.results

    def report(self, record: Kept) -> Verification:
        executor = ThreadExecutor(threads=1, open_work=open_work)
        with closing(executor):
            return verify(
                self._store,
                self._ref,
                threads=1,
                deep=True,
                spread=lambda _, shards, spans: check_in_batches(
                    executor, self._job, shards, spans, record, progress=lambda _done, _total: None
                ),
            )

    def close(self) -> None:
        self._store.close()


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verified]:
    with closing(Verified(tmp_path_factory.mktemp("verified"))) as found:
        yield found


@settings(max_examples=30)
@given(data=st.data())
def test_a_mangled_result_of_a_check_is_an_error_or_a_report(verified: Verified, data: st.DataObject) -> None:
    with bounded():
        verified.report(Kept("", mangled(data, verified.results)))


def without_the_first_slot(part: list[object]) -> list[object]:
    key, first, crcs, *others = part
    assert isinstance(crcs, bytes)
    return [key, first, crcs[4:], *others]


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[1:],
        lambda parts: [*parts, parts[0]],
        lambda parts: [without_the_first_slot(parts[0]), *parts[1:]],
        lambda parts: [["steps/another", *parts[0][1:]], *parts[1:]],
    ],
    ids=["one is missing", "one more", "a slot is missing", "of another object"],
)
def test_what_was_not_asked_for_does_not_pass_for_checked(
    verified: Verified, change: Callable[[list[list[object]]], list[object]]
) -> None:
    ((number, data),) = verified.results.items()
    changed = msgspec.msgpack.encode(change(msgspec.msgpack.decode(data)))
    with pytest.raises(Corrupt, match=r"result of a batch of verify: .* other slots than those of batch 0") as caught:
        verified.report(Kept("", {number: changed}))
    assert "--anew" in caught.value.hint


@contextmanager
def half_way(new: Callable[[], Stores]) -> Iterator[tuple[Stores, dict[int, bytes]]]:
    """A store in which all is written but the commit, and the results."""
    with small_chunks(32), small_parts():
        store, kept = new(), Kept(FIRST)
        given, commit = source()
        write(given, commit, store, writing_to(store), kept, FIRST)
        store.delete([commit_key(STEP)])
        yield store, kept.results


def go_on(store: Stores, results: dict[int, bytes]) -> None:
    record, writing = Kept(FIRST, results), writing_to(store)
    given, commit = source()
    write(given, commit, store, writing, record, require_written(store, STEP, writing, record, SECOND))


@pytest.mark.parametrize("new", [MemoryStore, new_bucket], ids=["folder", "bucket"])
def test_a_mangled_result_of_a_write_is_an_error_or_goes_on(new: Callable[[], Stores]) -> None:
    with half_way(new) as (store, results):

        @settings(max_examples=12)
        @given(data=st.data())
        def try_it(data: st.DataObject) -> None:
            with bounded(), suppress(BehemothError):  # what it says of uploads, the store judges
                go_on(store.copy(), mangled(data, results))

        try_it()


def test_units_of_another_batch_do_not_pass_for_written() -> None:
    with half_way(MemoryStore) as (store, results):
        with pytest.raises(Corrupt, match="other units than those of batch 0"):
            go_on(store.copy(), {**results, 0: results[1]})
        go_on(store, results)
