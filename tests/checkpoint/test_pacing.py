"""Reads at a limited rate, on a fake clock."""

import threading
from typing import Any

import pytest

from behemoth.base.errors import Conflict
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.pacing import BURST_S, PacedStore, Pacer
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore
from behemoth.testing.objects import ObjectContract
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout


class FakeTime:
    """Waits are what makes it pass."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def paced(inner: ObjectStore, time: FakeTime, *, bytes_per_s: int, stop: threading.Event | None = None) -> PacedStore:
    pacer = Pacer(bytes_per_s=bytes_per_s, stop=stop or threading.Event(), now=time.now, wait=time.wait)
    return PacedStore(inner, pacer)


def test_a_check_takes_as_long_as_its_bytes_at_that_rate_and_finds_the_same() -> None:
    store, time = MemoryStore(), FakeTime()
    save(store, small_layout(), step=10, write_id="a1-10")
    (commit,) = commits(store)
    report = verify(paced(store, time, bytes_per_s=50), commit, threads=1, deep=True)
    assert report.is_intact
    assert report == verify(store, commit, threads=1, deep=True)
    # More is read than arrays: the record and the metadata too.
    assert time.now_s - 100.0 >= report.num_bytes / 50 - BURST_S


def test_a_stop_ends_reads_at_once() -> None:
    store, stop = MemoryStore(), threading.Event()
    store.create("a", bytes(1000))
    slow = PacedStore(store, Pacer(bytes_per_s=1, stop=stop))
    reading = threading.Thread(target=_expect_conflict, args=(slow,), name="slow-read")
    reading.start()
    stop.set()
    reading.join(30)
    assert not reading.is_alive()


def _expect_conflict(store: ObjectStore) -> None:
    with pytest.raises(Conflict, match="read a: stopped"):
        store.read_into("a", offset_bytes=0, into=bytearray(1000))


class TestPacedStore(ObjectContract):
    """It is a store like any other."""

    @pytest.fixture
    def store(self) -> Any:
        return paced(MemoryStore(), FakeTime(), bytes_per_s=1 << 20)

    def reopened(self, store: ObjectStore) -> ObjectStore:
        assert isinstance(store, PacedStore)
        return store
