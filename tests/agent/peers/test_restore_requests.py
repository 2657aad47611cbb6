"""What a store is asked when a whole fleet restores: four nodes of four ranks each, every request counted."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.lone_node import nobody_has_it
from agent.peers.shared_fleet import LIMIT_S, NODES, Node, Saved, fleet, layout_on
from behemoth.agent.memories import Memories
from behemoth.agent.preparing import Preparing
from behemoth.agent.storewire import Prepare, Prepared, RestoreSource
from behemoth.base.errors import NotFound
from behemoth.base.ids import Rank, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import INDEX, commit_key, step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectInfo, ObjectStore
from checkpoint.saved_checkpoint import save

RANKS_PER_NODE = 4
LAYOUT = layout_on(dp=NODES * RANKS_PER_NODE)


class Asked(WrapperStore):
    """Counts listings, and reads by key. Thread-safe."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.num_lists = 0
        self.reads: Counter[str] = Counter()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            self.num_lists += 1
        return super().list(prefix)

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        with self._lock:
            self.reads[key] += 1
        super().read_into(key, offset_bytes=offset_bytes, into=into)


def preparing_on(node: Node, store: ObjectStore, *, is_shared: bool) -> Preparing:
    return Preparing(
        Memories(num_ranks=RANKS_PER_NODE),
        store=lambda: store,
        peer=nobody_has_it,
        shared=lambda: node.reads(store) if is_shared else None,
        threads=2,
        ranks_per_node=RANKS_PER_NODE,
        run_name="toy",
    )


def prepare(preparing: Preparing, rank: int, source: RestoreSource) -> tuple[Prepared, bytes]:
    """What became of it, and all that the rank's memory holds then."""
    fd = os.memfd_create("prepared", os.MFD_ALLOW_SEALING)
    order = Prepare(job=1, rank=Rank(rank), layout=LAYOUT.encode(), is_new=True, source=source)
    try:
        prepared = preparing.prepare(order, fd)
        data = Arena.open(fd).data(0)
        spans = plan_rank(LAYOUT, Rank(rank)).spans
        return prepared, b"".join(bytes(data[one.arena_offset : one.arena_offset + one.length]) for one in spans)
    finally:
        os.close(fd)


def told(saved: Saved, *, record_bytes: int | None = None) -> RestoreSource:
    """As a coordinator tells it, unless another size is given."""
    if record_bytes is None:
        record_bytes = saved.size_of(commit_key(saved.ref.step))
    return RestoreSource(
        step=saved.ref.step, write_id=saved.ref.write_id, held_in=None, spare=0, record_bytes=record_bytes
    )


def restored_by_all(saved: Saved, source: RestoreSource, *, is_shared: bool) -> Asked:
    """Every rank of every node at the same time; each must have its bytes."""
    asked = Asked(saved.memory)
    num_ranks = LAYOUT.mesh.num_ranks
    with fleet(asked) as nodes, ThreadPoolExecutor(num_ranks) as pool:
        on_nodes = [preparing_on(node, asked, is_shared=is_shared) for node in nodes]
        start = threading.Barrier(num_ranks)

        def work(rank: int) -> bytes:
            start.wait(LIMIT_S)
            prepared, content = prepare(on_nodes[rank // RANKS_PER_NODE], rank, source)
            assert (prepared.origin, prepared.generation) == ("store", 0)
            return content

        contents = list(pool.map(work, range(num_ranks)))
    commit = open_commit(saved.memory, saved.ref)
    assert contents == [saved.restored(saved.memory, commit, LAYOUT, rank) for rank in range(num_ranks)]
    return asked


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_fleet_that_is_told_its_commit_lists_nothing_and_opens_it_once_a_node_or_once_for_all(
    is_shared: bool,
) -> None:
    saved = Saved(LAYOUT)
    asked = restored_by_all(saved, told(saved), is_shared=is_shared)
    prefix = step_prefix(saved.ref.step, saved.ref.write_id)
    num_readers = 1 if is_shared else NODES
    assert asked.num_lists == 0
    assert asked.reads.pop(commit_key(saved.ref.step)) == num_readers
    assert asked.reads.pop(f"{prefix}/{INDEX}") == num_readers
    assert {key.rsplit("/")[-1] for key in asked.reads} == {"0"}  # chunks: no zarr.json
    if is_shared:
        assert asked.reads.total() == sum(grid.num_chunks for grid in grids(LAYOUT))


def test_without_a_size_from_the_coordinator_each_node_lists_for_all_of_its_ranks() -> None:
    saved = Saved(LAYOUT)
    asked = restored_by_all(saved, told(saved, record_bytes=0), is_shared=True)
    assert asked.num_lists == 2 * NODES  # commits, and which were taken back


@pytest.mark.parametrize("more_bytes", [-1, 1, 1 << 40])
def test_a_wrong_size_costs_a_listing_and_no_checkpoint(more_bytes: int) -> None:
    saved = Saved(LAYOUT)
    size_bytes = saved.size_of(commit_key(saved.ref.step))
    asked = Asked(saved.memory)
    with fleet(asked) as nodes:
        source = told(saved, record_bytes=size_bytes + more_bytes)
        assert prepare(preparing_on(nodes[0], asked, is_shared=True), 0, source)[0].generation == 0
    assert asked.num_lists == 2


@pytest.mark.parametrize("standing", ["nothing", "another write"])
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_commit_that_is_not_the_one_that_was_told_is_restored_by_nobody(is_shared: bool, standing: str) -> None:
    saved = Saved(LAYOUT)
    source = told(saved)
    saved.memory.delete([commit_key(saved.ref.step)])
    if standing == "another write":
        assert save(saved.memory, LAYOUT, step=saved.ref.step, write_id="b1-1") is not None
        assert saved.size_of(commit_key(saved.ref.step)) == source.record_bytes
    asked = Asked(saved.memory)
    with fleet(asked) as nodes, pytest.raises(NotFound, match="expected it in the store, got none") as caught:
        prepare(preparing_on(nodes[0], asked, is_shared=is_shared), 0, source)
    assert (caught.value.code, asked.num_lists) == ("commit-gone", 0)


def test_a_commit_that_could_not_be_opened_is_asked_for_again_by_the_next_rank() -> None:
    saved = Saved(LAYOUT)
    source = told(saved)
    asked = Asked(saved.memory)
    with fleet(asked) as nodes:
        preparing = preparing_on(nodes[0], asked, is_shared=False)
        with pytest.raises(NotFound):
            prepare(preparing, 0, RestoreSource(step=source.step, write_id=WriteId("gone"), held_in=None, spare=0))
        assert prepare(preparing, 1, source)[0].generation == 0
        assert prepare(preparing, 2, source)[0].generation == 0
        assert asked.reads[commit_key(saved.ref.step)] == 2
        preparing.clear()
        assert prepare(preparing, 3, source)[0].generation == 0
        assert asked.reads[commit_key(saved.ref.step)] == 3
