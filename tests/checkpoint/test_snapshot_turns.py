"""Two files that take turns, killed at every write of several copies in a row: what was durable before stays, and
nothing else is ever taken for a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from behemoth.base.errors import BehemothError, NotFound, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.copying import copy_snapshot
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.snapshot_files import UNREADABLE
from behemoth.checkpoint.snapshot_format import data_offset
from behemoth.ports import Into, WritesRanges
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, Die, Fail, FaultyStore, When, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import small_layout
from checkpoint.snapshots import PREFIX, files_of, formatted, given_back, keep, spans_of, stage_bytes

PLAN = plan_rank(small_layout(), Rank(0))
NUM_COPIES = 4  # each file is new once, and filled over another snapshot once


def name(number: int) -> str:
    return f"a1-{number}"


class Copying:
    """Copies one write after the other to a store until it dies. `durable`: the last one that was told to be there."""

    def __init__(self) -> None:
        self.arena = formatted(PLAN)
        self.content: dict[int, list[bytes]] = {}
        self.durable = 0

    def run(self, store: WritesRanges, first: int = 1, last: int = NUM_COPIES) -> None:
        for number in range(first, last + 1):
            self.content[number] = spans_of(stage_bytes(self.arena, PLAN, name(number), number), PLAN)
            keep(store, self.arena, PLAN)
            self.durable = number


def found_in(store: WritesRanges, copying: Copying) -> dict[int, list[bytes]]:
    """What a restore would get of each write, if anything."""
    given = {number: given_back(store, PLAN, name(number), number) for number in copying.content}
    return {number: spans for number, spans in given.items() if spans is not None}


def num_writes() -> int:
    counting = FaultyStore(MemoryStore())
    Copying().run(counting)
    return counting.num_writes


@pytest.mark.parametrize("death", every_death(num_writes()), ids=lambda death: f"{death.write}-{death.when.value}")
def test_a_kill_or_a_power_cut_at_any_write_of_four_copies_leaves_what_was_durable(death: Die) -> None:
    copying, killed = Copying(), MemoryStore()
    with pytest.raises(Crash):
        copying.run(FaultyStore(killed, death))
    durable = copying.durable
    for store in (killed, *(killed.after_power_loss(seed=seed) for seed in range(4))):
        found = found_in(store, copying)
        assert {number: copying.content[number] for number in found} == found
        assert durable == 0 or durable in found
        assert set(found) <= {durable - 1, durable, durable + 1}
        going_on = Copying()
        going_on.run(store, durable + 2, durable + 2)
        assert given_back(store, PLAN, name(durable + 2), durable + 2) == going_on.content[durable + 2]
        assert found_in(store, copying).keys() >= {max(found, default=0)} - {0}  # the newest of them is not the victim


def copy_of(store: WritesRanges, number: int) -> None:
    """Raises what a restore is told of a write that it does not get."""
    write_id, step = WriteId(name(number)), Step(number)
    found = files_of(store, PLAN).find(write_id, step)
    copy_snapshot(found, PLAN, formatted(PLAN), 0, write_id=write_id, step=step, threads=1)


def torn_header(data: bytearray, older: bytes) -> None:
    data[: PAGE_BYTES // 32] = older[: PAGE_BYTES // 32]


def table_of_zeros(data: bytearray, _older: bytes) -> None:
    data[PAGE_BYTES : 2 * PAGE_BYTES] = bytes(PAGE_BYTES)


def old_bytes_in_the_data(data: bytearray, older: bytes) -> None:
    at = data_offset(PLAN) + PLAN.spans[-1].arena_offset
    data[at : at + PLAN.spans[-1].length] = older[at : at + PLAN.spans[-1].length]


def cut_in_half(data: bytearray, _older: bytes) -> None:
    del data[len(data) // 2 :]


def empty(data: bytearray, _older: bytes) -> None:
    data.clear()


@pytest.mark.parametrize(
    ("tear", "said"),
    [
        (torn_header, "snapshot record of .* bytes: expected the CRC of its bytes, got another"),
        (table_of_zeros, "over its table of CRCs"),
        (old_bytes_in_the_data, "expected CRC-32C .* 1 of 4 spans are damaged in all"),
        (cut_in_half, "expected at least 8456 bytes, got 4256 bytes"),
        (empty, "expected at least 4096 bytes, got 0 bytes"),
    ],
)
@pytest.mark.parametrize("newest", [2, 3])
def test_a_newest_file_that_a_power_cut_tore_gives_nothing_and_the_other_one_all(
    tmp_path: Path, tear: Callable[[bytearray, bytes], None], said: str, newest: int
) -> None:
    """A device that lied about what is durable: the order of writes cannot help then, only the CRCs."""
    store, copying = LocalStore(tmp_path), Copying()
    copying.run(store, 1, newest)
    paths = [tmp_path / PREFIX / f"rank-00000.{index}" for index in range(2)]
    torn, other = paths[(newest - 1) % 2], paths[newest % 2]
    data = bytearray(torn.read_bytes())
    tear(data, other.read_bytes())
    torn.write_bytes(data)
    with pytest.raises(BehemothError, match=said):
        copy_of(store, newest)
    assert given_back(store, PLAN, name(newest - 1), newest - 1) == copying.content[newest - 1]
    files_of(store, PLAN).drop(WriteId(name(newest)))  # as a restore does that found damage
    copying.run(store, newest + 1, newest + 2)
    assert found_in(store, copying).keys() == {newest + 1, newest + 2}
    store.close()


@pytest.mark.parametrize("write", range(num_writes()))
@pytest.mark.parametrize("when", When)
def test_a_disk_that_is_full_at_any_write_of_either_file_costs_that_copy_alone(write: int, when: When) -> None:
    full = Unavailable("the disk is full", code="no-space")
    store, copying = MemoryStore(), Copying()
    with pytest.raises(Unavailable, match="the disk is full"):
        copying.run(FaultyStore(store, Fail(write=write, when=when, error=full)))
    found, durable = found_in(store, copying), copying.durable
    assert {number: copying.content[number] for number in found} == found
    assert durable == 0 or durable in found
    copying.run(store, durable + 1, durable + 2)  # there is room again
    assert found_in(store, copying).keys() == {durable + 1, durable + 2}


class Unreadable(MemoryStore):
    """A device that reports a read error for one file, until that is written anew."""

    bad = ""

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        if key == self.bad:
            raise Unavailable(f"read {key}: input/output error", code="io-error")
        super().read_into(key, offset_bytes=offset_bytes, into=into)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_file_that_the_device_cannot_read_is_said_and_is_the_next_to_be_written(bad: int) -> None:
    store, copying = Unreadable(), Copying()
    copying.run(store, 1, 2)
    store.bad = files_of(store, PLAN).keys[bad]
    with pytest.raises(NotFound, match=f"rank-00000.{bad}: read .*: input/output error") as caught:
        files_of(store, PLAN).find(WriteId(name(1 + bad)), Step(1 + bad))
    assert caught.value.code == UNREADABLE
    assert found_in(store, copying).keys() == {2 - bad}
    copying.run(store, 3, 3)
    store.bad = ""  # the device has replaced the block
    assert found_in(store, copying).keys() == {2 - bad, 3}
