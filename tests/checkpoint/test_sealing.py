"""What a save makes durable while it is still writing."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.sealing import BYTES_PER_CALL, KEYS_PER_CALL, Sealing


class SealedOnly:
    """A store that remembers what was sealed; fails for one key."""

    def __init__(self, bad_key: str = "") -> None:
        self.sealed: list[str] = []
        self.calls: list[int] = []
        self.called = threading.Event()
        self._bad_key = bad_key
        self._lock = threading.Lock()

    def seal(self, keys: Sequence[str]) -> None:
        if self._bad_key in keys:
            raise Unavailable(f"seal {self._bad_key}: the disk is full")
        with self._lock:
            self.sealed += keys
            self.calls.append(len(keys))
        self.called.set()


def test_everything_that_was_added_is_sealed_once() -> None:
    store = SealedOnly()
    keys = [f"object-{number}" for number in range(2 * KEYS_PER_CALL + 3)]
    with Sealing(store.seal) as sealing:
        for key in keys:
            sealing.add([key])
        sealing.finish()
    assert sorted(store.sealed) == sorted(keys)


def test_sealing_begins_before_all_is_written() -> None:
    store = SealedOnly()
    with Sealing(store.seal) as sealing:
        sealing.add([f"object-{number}" for number in range(KEYS_PER_CALL)])
        assert store.called.wait(timeout=30)


def test_many_objects_that_are_added_at_once_are_shared_out_among_calls() -> None:
    store, keys = SealedOnly(), [f"object-{number}" for number in range(3 * KEYS_PER_CALL + 2)]
    with Sealing(store.seal) as sealing:
        sealing.add(keys)
        sealing.finish()
    assert max(store.calls) == KEYS_PER_CALL
    assert sorted(store.sealed) == sorted(keys)


def test_many_large_objects_that_are_added_at_once_all_begin() -> None:
    store, keys = SealedOnly(), [f"object-{number}" for number in range(KEYS_PER_CALL + 1)]
    with Sealing(store.seal) as sealing:
        sealing.add(keys, num_bytes=BYTES_PER_CALL)
        while len(store.sealed) < len(keys):
            assert store.called.wait(timeout=30)
            store.called.clear()


def test_sealing_begins_at_once_when_much_of_few_objects_waits_for_the_disk() -> None:
    store = SealedOnly()
    with Sealing(store.seal) as sealing:
        sealing.add(["small"], num_bytes=BYTES_PER_CALL - 1)
        sealing.add(["large"], num_bytes=1)
        assert store.called.wait(timeout=30)
    assert sorted(store.sealed) == ["large", "small"]


def test_an_error_of_the_store_is_raised_at_the_end() -> None:
    with Sealing(SealedOnly(bad_key="b").seal) as sealing:
        sealing.add(["a", "b"])
        with pytest.raises(Unavailable, match="seal b"):
            sealing.finish()


def test_nothing_is_sealed_without_a_finish_when_writing_has_failed() -> None:
    store = SealedOnly()
    with Sealing(store.seal) as sealing:
        sealing.add(["a"])
    assert store.sealed == []
