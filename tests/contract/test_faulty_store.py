"""The faulty store breaks where its plan says, and the memory store forgets what was not sealed."""

import pytest

from behemoth.base.errors import Invalid, NotFound, Unavailable
from behemoth.ports import Part
from behemoth.testing.faults import Crash, Die, FaultyStore, When, every_death, lost_answer
from behemoth.testing.store import MemoryStore, contents, read


def _two_writes(store: FaultyStore) -> None:
    store.write_parts("a", size_bytes=8, parts=[Part(offset_bytes=0, buffers=[b"abc", b"defgh"])])
    store.create("b", b"x")


@pytest.mark.parametrize(
    ("fault", "held"),
    [
        (Die(write=0, when=When.BEFORE), {}),
        (Die(write=0, when=When.MIDDLE), {"a": b"abcd\0\0\0\0"}),
        (Die(write=0, when=When.AFTER), {"a": b"abcdefgh"}),
        (Die(write=1, when=When.MIDDLE), {"a": b"abcdefgh"}),
        (Die(write=1, when=When.AFTER), {"a": b"abcdefgh", "b": b"x"}),
    ],
)
def test_it_dies_where_told_and_stays_dead(fault: Die, held: dict[str, bytes]) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner, fault)
    with pytest.raises(Crash):
        _two_writes(store)
    with pytest.raises(Crash):
        store.read_into("a", offset_bytes=0, into=bytearray(1))
    with pytest.raises(Crash):
        store.list("")
    with pytest.raises(Crash):
        store.seal(["a"])
    assert contents(inner) == held


def test_a_lost_answer_fails_once_and_the_write_is_done() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner, lost_answer(1))
    with pytest.raises(Unavailable, match="connection reset"):
        _two_writes(store)
    assert read(store, "b", 1) == b"x"


def test_writes_are_counted_and_reads_are_not() -> None:
    store = FaultyStore(MemoryStore())
    _two_writes(store)
    store.seal(["a"])
    store.delete(["b"])
    read(store, "a", 8)
    list(store.list(""))
    assert store.num_writes == 4
    assert len(every_death(store.num_writes)) == 12


def test_a_loop_over_the_deaths_of_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="expected at least one write to die at, got 0"):
        every_death(0)


def test_a_power_cut_takes_unsealed_bytes_only() -> None:
    fates: set[bytes | None] = set()
    for seed in range(40):
        store = MemoryStore()
        for key in ("sealed", "unsealed"):
            store.write_parts(key, size_bytes=4, parts=[Part(offset_bytes=0, buffers=[b"abcd"])])
        store.seal(["sealed"])
        store.create("created", b"x")
        after = store.after_power_loss(seed=seed)
        assert read(after, "sealed", 4) == b"abcd"
        assert read(after, "created", 1) == b"x"
        try:
            fates.add(read(after, "unsealed", 4))
        except NotFound:
            fates.add(None)
    assert fates == {None, bytes(4), b"ab\0\0", b"abcd"}
