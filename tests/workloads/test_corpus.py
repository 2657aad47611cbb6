"""Every sample once, in an order that depends on nothing but the step."""

from __future__ import annotations

import numpy as np
import pytest

from behemoth.workloads.corpus import SEPARATOR, VOCABULARY, Corpus, Cursor, standard_library


def corpus_of(num_tokens: int) -> Corpus:
    return Corpus(tokens=np.arange(num_tokens, dtype=np.int64), fingerprint="test")


def test_the_standard_library_is_the_same_text_each_time_and_bounded() -> None:
    corpus = standard_library(limit_bytes=100_000)
    again = standard_library(limit_bytes=100_000)
    assert np.array_equal(corpus.tokens, again.tokens)
    assert corpus.fingerprint == again.fingerprint
    assert np.count_nonzero(corpus.tokens != SEPARATOR) == 100_000
    assert corpus.tokens.max() == VOCABULARY - 1
    assert standard_library(limit_bytes=99_999).fingerprint != corpus.fingerprint


@pytest.mark.parametrize("num_tokens", [9, 41, 1000, 1024])
def test_an_epoch_has_each_window_exactly_once(num_tokens: int) -> None:
    corpus, length = corpus_of(num_tokens), 8
    count = corpus.windows(length)
    for epoch in range(3):
        ids = range(epoch * count, (epoch + 1) * count)
        starts = sorted(int(corpus.sample(i, length)[0]) for i in ids)
        assert starts == [window * length for window in range(count)]
        assert all(corpus.sample(i, length).size == length + 1 for i in ids)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_slots_of_all_ranks_make_up_the_step(ranks: int) -> None:
    corpus = corpus_of(1001)
    whole = Cursor(corpus, samples_per_step=4, length=10)
    cursors = [Cursor(corpus, samples_per_step=4, length=10) for _ in range(ranks)]
    for step in (1, 2, 3):
        share = 4 // ranks
        parts = [c.batch(step, first_slot=r * share, num_slots=share) for r, c in enumerate(cursors)]
        assert np.array_equal(np.concatenate(parts), whole.batch(step, first_slot=0, num_slots=4))


@pytest.mark.parametrize("step", [1, 3])
def test_a_repeated_or_skipped_batch_is_an_error(step: int) -> None:
    cursor = Cursor(corpus_of(1001), samples_per_step=4, length=10)
    cursor.batch(1, first_slot=0, num_slots=4)
    with pytest.raises(RuntimeError, match="expected sample 4 next"):
        cursor.batch(step, first_slot=0, num_slots=4)


def test_a_resumed_cursor_goes_on_where_its_record_says() -> None:
    first = Cursor(corpus_of(1001), samples_per_step=4, length=10)
    first.batch(1, first_slot=0, num_slots=4)
    second = Cursor(corpus_of(1001), samples_per_step=4, length=10)
    second.resume(first.record())
    assert np.array_equal(second.batch(2, first_slot=0, num_slots=4), first.batch(2, first_slot=0, num_slots=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "other"}, "expected corpus test, got other"),
        ({"length": 11}, "expected length 10, got 11"),
        ({"next_sample": -1}, "expected next_sample >= 0"),
        ({"next_sample": None}, "expected next_sample >= 0"),
    ],
)
def test_a_record_of_another_text_or_batch_is_refused(change: dict[str, object], message: str) -> None:
    cursor = Cursor(corpus_of(1001), samples_per_step=4, length=10)
    with pytest.raises(ValueError, match=message):
        cursor.resume({**cursor.record(), **change})
    with pytest.raises(ValueError, match="named fields"):
        cursor.resume([1])
