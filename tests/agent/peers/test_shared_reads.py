"""Four nodes read one checkpoint from one store: each chunk once, whatever a peer does wrong."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.lone_node import nobody_has_it
from agent.peers.shared_fleet import LIMIT_S, MESHES, MIB, NODES, Saved, fleet, layout_on, needed_bytes
from behemoth.agent.memories import Memories
from behemoth.agent.peers import read_once
from behemoth.agent.peers import shared_reads as shared_reads_module
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.server import Handler, Reply
from behemoth.agent.preparing import Preparing
from behemoth.agent.storewire import Prepare, RestoreSource
from behemoth.base.errors import Corrupt, Invalid, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.units import ChunkUnits, ReadUnit
from behemoth.ports import Into, Part
from behemoth.wire.peers import AskStored, StoredFound


@pytest.mark.parametrize("meshes", MESHES.values(), ids=MESHES)
def test_the_fleet_reads_each_byte_of_the_store_once(meshes: tuple[Layout, Layout]) -> None:
    saved = Saved(meshes[0])
    with fleet(saved.store) as nodes:
        reads = saved.restore_all(nodes, meshes[1])
    assert saved.store.read_bytes / needed_bytes(saved.layout) < 1.01
    assert sum(one.read_bytes for one in reads) == saved.store.read_bytes
    assert sum(one.peer_bytes for one in reads) > 0


def test_alone_each_rank_reads_more_than_it_needs() -> None:
    """What the figures above are to be held against."""
    saved = Saved(layout_on(dp=4))
    saved.restore_alone(saved.layout)
    assert saved.store.read_bytes / needed_bytes(saved.layout) > 2


def test_what_every_rank_reads_is_read_once_by_each_group_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads_module, "GROUP_NODES", 2)
    saved = Saved(layout_on(dp=4))
    counts = []
    with fleet(saved.store) as nodes:
        for node in (0, 1, 3, 2):
            open_commit(nodes[node].reads(saved.store), saved.ref)
            counts.append(saved.store.read_bytes)
    alone = CountingStore(saved.memory)
    open_commit(alone, saved.ref)
    assert counts == [alone.read_bytes, alone.read_bytes, 2 * alone.read_bytes, 2 * alone.read_bytes]


def test_what_a_store_says_to_the_node_that_reads_is_not_asked_for_again() -> None:
    saved = Saved(layout_on(dp=4))

    class Away(CountingStore):
        num_asked = 0

        def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
            self.num_asked += 1
            raise Unavailable(f"read {key} from {offset_bytes}, {num_bytes(into)} bytes: no whole answer")

    away = Away(saved.memory)
    with fleet(away) as nodes:
        own = next(number for number in range(100) if zlib.crc32(f"a{number} 0".encode()) % NODES == nodes[0].slot)
        with pytest.raises(Unavailable, match="no whole answer"):
            nodes[0].reads(away).read_into(f"a{own}", offset_bytes=0, into=bytearray(8))
    assert away.num_asked == 1


def refuses(_asked: AskStored) -> Reply:
    raise Unavailable("no")


def lies(asked: AskStored) -> Reply:
    return Reply(answer=StoredFound(crc=1, read_bytes=0), payload=(bytes(asked.length_bytes),))


def truncates(asked: AskStored) -> Reply:
    return Reply(answer=StoredFound(crc=1, read_bytes=0), payload=(bytes(asked.length_bytes - 1),))


@pytest.mark.parametrize("wrong", [refuses, lies, truncates])
def test_a_peer_that_does_anything_wrong_costs_reads_and_no_byte(wrong: Handler) -> None:
    saved = Saved(layout_on(dp=4))
    with fleet(saved.store, broken={2: wrong}) as nodes:
        reads = saved.restore_all(nodes, saved.layout)
    assert sum(one.read_bytes for one in reads) == saved.store.read_bytes > needed_bytes(saved.layout)


def test_peers_that_are_gone_cost_reads_and_no_byte() -> None:
    saved = Saved(layout_on(dp=4))
    with fleet(saved.store) as nodes:
        pass
    reads = saved.restore_all(nodes, saved.layout)
    assert sum(one.peer_bytes for one in reads) == 0


def test_memory_for_what_was_read_is_bounded_and_what_is_gone_is_read_again() -> None:
    saved = Saved(layout_on(dp=4))
    once = ReadOnce(lambda: saved.store, limit_bytes=3000)
    key = next(one.key for one in saved.memory.list("") if one.size_bytes > MIB)
    units = [ReadUnit(key, start, 1000) for start in range(0, 5000, 1000)]
    assert [once.get(unit)[1] for unit in (*units, *units[2:])] == [1000] * 5 + [0] * 3
    assert once.get(units[0])[1] == 1000
    once.clear()
    assert once.get(units[4])[1] == 1000
    assert saved.store.read_bytes == 7000


def test_memory_is_counted_right_when_it_is_given_back_while_a_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(layout_on(dp=4))
    once = ReadOnce(lambda: saved.store, limit_bytes=1000)

    class ClearedAtTheEnd(threading.Event):
        def set(self) -> None:
            clearing.start()
            clearing.join(0.1)  # it ends here only if it need not wait for the read
            super().set()

    clearing = threading.Thread(target=once.clear)
    key = next(one.key for one in saved.memory.list("") if one.size_bytes > MIB)
    monkeypatch.setattr(read_once._Read, "__init__", _begun_with(ClearedAtTheEnd))
    assert once.get(ReadUnit(key, 0, 1000))[1] == 1000
    clearing.join(LIMIT_S)
    monkeypatch.undo()
    later = [ReadUnit(key, start, 1000) for start in (1000, 2000, 3000)]
    assert [once.get(unit)[1] for unit in (*later, later[1])] == [1000] * 4


def _begun_with(event: type[threading.Event]) -> Callable[[read_once._Read], None]:
    def begin(read: read_once._Read) -> None:
        read.done, read.data, read.error = event(), memoryview(b""), None

    return begin


def test_those_who_wait_for_a_read_that_fails_are_told_why_and_the_next_one_reads_again() -> None:
    saved, reading, failing = Saved(layout_on(dp=4)), threading.Event(), threading.Event()

    class FailsOnce(CountingStore):
        def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
            if not failing.is_set():
                reading.set()
                failing.wait(LIMIT_S)
                raise Unavailable("the store is away")
            super().read_into(key, offset_bytes=offset_bytes, into=into)

    store = FailsOnce(saved.memory)
    once = ReadOnce(lambda: store, limit_bytes=MIB)
    unit = ReadUnit(next(iter(saved.memory.list(""))).key, 0, 10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.get, unit)
        assert reading.wait(LIMIT_S)
        second = pool.submit(once.get, unit)
        failing.set()
        assert isinstance(first.exception(LIMIT_S), Unavailable)
        assert second.exception(LIMIT_S) is None or isinstance(second.exception(), Unavailable)
    assert len(once.get(unit)[0]) == 10


def test_who_waits_for_its_turn_to_read_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, asked, all_asked = Saved(layout_on(dp=4)), [], threading.Event()

    def counted(num_bytes: int) -> bytearray:
        asked.append(num_bytes)
        if len(asked) == 3:
            all_asked.set()
        return bytearray(num_bytes)

    class WaitsForTheOthers(CountingStore):
        def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
            all_asked.wait(0.1)  # in vain, if only who reads takes memory
            held.append(len(asked))
            super().read_into(key, offset_bytes=offset_bytes, into=into)

    held: list[int] = []
    monkeypatch.setattr(read_once, "MAX_READS", 1)
    monkeypatch.setattr(read_once, "bytearray", counted, raising=False)
    store = WaitsForTheOthers(saved.memory)
    once = ReadOnce(lambda: store, limit_bytes=MIB)
    key = next(iter(saved.memory.list(""))).key
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(once.get, [ReadUnit(key, start, 10) for start in range(3)]))
    assert held == [1, 2, 3]


def test_a_read_for_which_there_is_no_memory_is_no_read_that_others_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(layout_on(dp=4))
    once = ReadOnce(lambda: saved.store, limit_bytes=MIB)
    unit = ReadUnit(next(iter(saved.memory.list(""))).key, 0, 10)

    def none_left(num_bytes: int) -> bytearray:
        raise MemoryError(num_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(read_once, "bytearray", none_left, raising=False)
        with pytest.raises(MemoryError):
            once.get(unit)
    assert once.get(unit)[1] == 10


def test_a_part_that_is_not_of_its_unit_or_a_unit_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saved(layout_on(dp=4))
    once = ReadOnce(lambda: saved.store, limit_bytes=MIB)
    for offset, length in ((0, 11), (9, 2), (-1, 2)):
        asked = AskStored(key="a", unit_offset_bytes=0, unit_length_bytes=10, offset_bytes=offset, length_bytes=length)
        with pytest.raises(Invalid, match="expected a part of"):
            once.answer(asked)
    monkeypatch.setattr(read_once, "MAX_UNIT_BYTES", 5)
    with pytest.raises(Invalid, match="at most 5 bytes at once, got 10"):
        once.get(ReadUnit("a", 0, 10))
    assert saved.store.read_bytes == 0


def test_damage_in_the_store_is_told_as_who_reads_alone_tells_it() -> None:
    saved = Saved(layout_on(dp=4))
    commit = open_commit(saved.memory, saved.ref)
    key = commit.shard_keys(0)[0]
    saved.memory.write_parts(
        key, size_bytes=saved.size_of(key), parts=[Part(offset_bytes=100, buffers=[b"\xff\xff\xff\xff"])]
    )
    with fleet(saved.store) as nodes:
        reads = nodes[0].reads(saved.store)
        reads.unit_of = ChunkUnits(commit).unit_of
        with pytest.raises(Corrupt, match="array 'model/w', chunk 0"):
            saved.restored(reads, commit, saved.layout, 0)


def test_damage_that_only_a_peer_saw_is_no_damage() -> None:
    saved = Saved(layout_on(dp=4))

    def lies_well(asked: AskStored) -> Reply:
        wrong = bytes(asked.length_bytes)
        return Reply(answer=StoredFound(crc=crc32c(wrong), read_bytes=0), payload=(wrong,))

    with fleet(saved.store, broken=dict.fromkeys(range(1, NODES), lies_well)) as nodes:
        plan = plan_rank(saved.layout, Rank(0))
        commit = open_commit(saved.memory, saved.ref)
        expected = saved.restored(saved.memory, commit, saved.layout, 0)

        node = nodes[0]
        preparing = Preparing(
            Memories(num_ranks=1),
            store=lambda: saved.store,
            peer=nobody_has_it,
            shared=lambda: node.reads(saved.store),
            threads=1,
            ranks_per_node=1,
            run_name="toy",
        )
        fd = os.memfd_create("prepared", os.MFD_ALLOW_SEALING)
        source = RestoreSource(step=saved.ref.step, write_id=saved.ref.write_id, held_in=None, spare=0)
        order = Prepare(job=1, rank=Rank(0), layout=saved.layout.encode(), is_new=True, source=source)
        prepared = preparing.prepare(order, fd)
        assert (prepared.origin, prepared.generation) == ("store", 0)
        data = Arena.open(fd).data(0)
        assert b"".join(data[one.arena_offset : one.arena_offset + one.length] for one in plan.spans) == expected
        os.close(fd)
