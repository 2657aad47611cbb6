"""Whatever lies on a disk where one of our documents should be: an error that says so, little memory, no raw trace."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid, NotFound
from behemoth.base.ids import Rank, RunUid, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.commit_index import CommitIndex
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.marker import Marker
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import Owner
from behemoth.checkpoint.paths import INDEX, commit_key
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.receipt import Freshness, Receipt, WrittenShard
from behemoth.checkpoint.records import decode_record, encode_record
from behemoth.checkpoint.snapshot_format import SnapshotHeader
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.verify import verify
from behemoth.testing.store import MemoryStore
from checkpoint.mangled import mangled_bytes, mangled_document
from checkpoint.saved_checkpoint import save, small_layout

MOST_BYTES = 64 << 20
"""What reading a document of some kB may take, however large the sizes are that it tells."""
STORE = MemoryStore()
SAVED = save(STORE, small_layout(), step=7, write_id="a1-1")
assert SAVED is not None
RECORD: CommitRecord = SAVED
assert RECORD is not None
FRAMED = {
    "commit": (RECORD.encode(), CommitRecord.decode),
    "marker": (Marker.of(Step(7), WriteId("a1-1"), reason="it is good").encode(), Marker.decode),
    "owner": (Owner.of_run(RunUid("u"), name="test", directory="/runs/test").encode(), Owner.decode),
}
PACKED: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "layout": (small_layout().encode(), Layout.decode),
    "index": (b"", CommitIndex.decode),
    "receipt": (
        Receipt(
            rank=0,
            attempt=1,
            step=7,
            write_id="a1-1",
            layout_digest="d",
            spans=[WrittenSpan(0, 0, 0, 4, 5, False), WrittenSpan(0, 1, 4, 8, 6, True)],
            freshness=Freshness(updated_step=7, held_crc=1, frozen=(1, 2)),
            shards=(WrittenShard(0, 1, 2, 3),),
            ends=b"12345678",
        ).encode(),
        Receipt.decode,
    ),
}
SNAPSHOT = SnapshotHeader.of(
    plan_rank(small_layout(), Rank(0)), run_uid=RunUid("u"), step=Step(7), write_id=WriteId("a1-1"), turn=1, table_crc=2
)


def _read(key: str, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    STORE.read_into(key, offset_bytes=0, into=data)
    return bytes(data)


INDEX_DATA = _read(f"{RECORD.prefix}/{INDEX}", RECORD.index_bytes)
PACKED["index"] = (INDEX_DATA, CommitIndex.decode)
ALL = {**FRAMED, **PACKED}


@contextmanager
def bounded() -> Iterator[None]:
    """Ends well, or with an error for operators, and in bounded memory."""
    tracemalloc.start()
    try:
        yield
    except (Corrupt, Invalid):
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < MOST_BYTES


@pytest.mark.parametrize("name", sorted(FRAMED))
def test_a_document_that_is_nested_too_deeply_is_corrupt_with_a_checksum_and_without(name: str) -> None:
    valid, decode = FRAMED[name]
    body = unframed(valid, name=name)
    deep = body[:-1] + b',"unheard_of":' + b"[" * 5000 + b"]" * 5000 + b"}"
    for data in (framed(deep), valid.replace(body, deep)):
        with pytest.raises(Corrupt, match="recursion"):
            decode(data)


@pytest.mark.parametrize("name", sorted(ALL))
@given(data=st.data())
def test_mangled_bytes_are_an_error_for_operators(name: str, data: st.DataObject) -> None:
    valid, decode = ALL[name]
    rubbish = data.draw(mangled_bytes(valid))
    with bounded():
        decode(rubbish)


@pytest.mark.parametrize("name", sorted(FRAMED))
@given(data=st.data())
def test_a_mangled_document_with_the_right_checksum_is_an_error_or_a_document(name: str, data: st.DataObject) -> None:
    valid, decode = FRAMED[name]
    document = msgspec.json.decode(unframed(valid, name=name))
    rubbish = data.draw(mangled_document(document, encode=msgspec.json.encode))
    with bounded():
        decode(framed(rubbish))


@pytest.mark.parametrize("name", sorted(PACKED))
@given(data=st.data())
def test_a_mangled_packed_document_is_an_error_or_a_document(name: str, data: st.DataObject) -> None:
    valid, decode = PACKED[name]
    rubbish = data.draw(_packed(msgspec.msgpack.decode(valid)))
    with bounded():
        decode(rubbish)


@given(data=st.data())
def test_a_mangled_commit_with_the_right_checksum_is_told(data: st.DataObject) -> None:
    document = msgspec.json.decode(unframed(RECORD.encode(), name="commit"))
    _open_and_verify(framed(data.draw(mangled_document(document, encode=msgspec.json.encode))), INDEX_DATA)


@given(data=st.data())
def test_a_mangled_index_that_its_commit_agrees_with_is_told(data: st.DataObject) -> None:
    document = msgspec.msgpack.decode(INDEX_DATA)
    if data.draw(st.booleans()):
        layout = msgspec.msgpack.decode(document["layout"])
        index = msgspec.msgpack.encode({**document, "layout": data.draw(_packed(layout))})
    else:
        index = data.draw(_packed(document))
    agreed: dict[str, Any] = {"index_bytes": len(index), "index_crc": crc32c(index)}
    with bounded():
        agreed["layout_digest"] = CommitIndex.decode(index).layout.digest
    _open_and_verify(replace(RECORD, **agreed).encode(), index)


@given(data=st.data())
def test_a_mangled_record_of_small_state_is_an_error_or_a_record(data: st.DataObject) -> None:
    valid = encode_record({"step": 7, "cursor": [1, 2], "name": "x"}, 64)
    with bounded():
        decode_record(data.draw(mangled_bytes(valid)))


@given(data=st.data())
def test_a_mangled_header_of_a_snapshot_on_a_disk_is_an_error_or_a_header(data: st.DataObject) -> None:
    with bounded():
        SnapshotHeader.decode(data.draw(mangled_bytes(SNAPSHOT.encode())))
    document = msgspec.json.decode(unframed(SNAPSHOT.encode().rstrip(b"\0"), name="snapshot"))
    rubbish = framed(data.draw(mangled_document(document, encode=msgspec.json.encode)))
    with bounded():
        SnapshotHeader.decode(rubbish.ljust(PAGE_BYTES, b"\0"))


@given(header=st.binary(min_size=1, max_size=4096), at=st.integers(0, 4095))
def test_a_mangled_arena_is_an_error_or_an_arena(header: bytes, at: int) -> None:
    plan = plan_rank(small_layout(), Rank(0))
    fd = os.memfd_create("mangled-arena")
    try:
        os.ftruncate(fd, Arena.size_bytes(plan))
        Arena.format(fd, plan).close()
        os.pwrite(fd, header, at)
        with bounded():
            arena = Arena.open(fd)
            for generation in range(2):
                _snapshot(arena, generation)
            arena.close()
    finally:
        os.close(fd)


def _snapshot(arena: Arena, generation: int) -> None:
    with suppress(Corrupt, NotFound):
        arena.snapshot(generation)


def _packed(document: object) -> st.SearchStrategy[bytes]:
    return mangled_document(document, encode=msgspec.msgpack.encode)


def _open_and_verify(commit: bytes, index: bytes) -> None:
    """Both say that it is no checkpoint, or both find nothing wrong with it: a `run` of another name is still one."""
    store = STORE.copy()
    store.delete([commit_key(RECORD.step), f"{RECORD.prefix}/{INDEX}"])
    store.create(commit_key(RECORD.step), commit)
    store.create(f"{RECORD.prefix}/{INDEX}", index)
    with bounded():
        report = verify(store, RECORD.ref, threads=1, deep=True)
    opens = False
    with bounded(), suppress(NotFound):
        open_commit(store, RECORD.ref)
        opens = True
    assert opens or not report.is_intact
