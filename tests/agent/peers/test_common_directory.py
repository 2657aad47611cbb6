"""Store processes' own services on four nodes that restore from one directory: whether they read it together is for
each of them to see, by what it has mounted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from agent.peers.shared_fleet import LIMIT_S, MESHES, NODES, layout_on, needed_bytes
from agent.peers.staged import KEY, RUN
from behemoth.agent import store_services
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.server import PeerServer
from behemoth.agent.store_services import StoreServices
from behemoth.agent.storewire import OpenStore, PeerService, Prepare, Prepared, RestoreSource, SeePeers
from behemoth.base.ids import NodeId, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.into import buffers_of
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.ports import Into
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from behemoth.wire.commands import PeerPlace
from behemoth.wire.setup import ShareReads
from checkpoint.checkpoint_rig import local_arrays, raw_bytes, unstaged
from checkpoint.saved_checkpoint import save, saved_arrays

STEP, WRITE = Step(3), WriteId("a1-1")


class Mounted(LocalStore):
    """A directory as one node has it, by a mount of the network or not. Counts what is read of it."""

    def __init__(self, root: Path, *, is_network: bool) -> None:
        super().__init__(root)
        self.read_bytes = 0
        self._is_network = is_network
        self._counting = threading.Lock()

    def is_on_network(self) -> bool:
        return self._is_network

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        with self._counting:
            self.read_bytes += sum(memoryview(one).nbytes for one in buffers_of(into))


def opens(store: Mounted) -> Callable[[str], Mounted]:
    return lambda _url: store


class Fleet:
    """Services of nodes with the stores that they have opened."""

    def __init__(
        self,
        stack: ExitStack,
        root: Path,
        are_network: Mapping[int, bool],
        share_reads: ShareReads = "auto",
        *,
        ranks_per_node: int = 1,
    ) -> None:
        self._ranks_per_node = ranks_per_node
        self.stores = [Mounted(root, is_network=are_network[slot]) for slot in range(NODES)]
        listeners = [listen_for_peers("127.0.0.1") for _ in range(NODES)]
        places = tuple(
            PeerPlace(host="127.0.0.1", port=one.getsockname()[1], domain=slot) for slot, one in enumerate(listeners)
        )
        names = tuple(NodeId(f"n{slot}") for slot in range(NODES))
        self.services = []
        for slot, (store, listener) in enumerate(zip(self.stores, listeners, strict=True)):
            stack.enter_context(closing(store))
            peers = PeerService(run_uid=RUN, node=names[slot], key=KEY, rate_bytes_per_s=None)
            opening = OpenStore(
                job=0, url="any", threads=2, num_ranks=ranks_per_node, peers=peers, share_reads=share_reads
            )
            services = StoreServices(opening, opens(store), lambda _path: MemoryStore())
            services.open_to_peers(peers, listener)
            services.peers.see(SeePeers(job=0, slot=slot, nodes=names, places=places))
            self.services.append(services)

    def restore(self, layout: Layout) -> list[Prepared]:
        """The ranks of all nodes at the same time; each must hold what was saved."""
        num_ranks = layout.mesh.num_ranks
        assert num_ranks == NODES * self._ranks_per_node
        start, arrays = threading.Barrier(num_ranks), saved_arrays(layout, STEP)

        def work(rank: int) -> Prepared:
            fd = os.memfd_create(f"restoring-{rank}", os.MFD_ALLOW_SEALING)
            source = RestoreSource(step=STEP, write_id=WRITE, held_in=None, spare=0)
            order = Prepare(job=rank, rank=Rank(rank), layout=layout.encode(), is_new=True, source=source)
            try:
                start.wait(LIMIT_S)
                prepared = self.services[rank // self._ranks_per_node].do(order, fd, cancelled=lambda: False)
                assert isinstance(prepared, Prepared)
                with closing(Arena.open(fd)) as arena:
                    held = unstaged(arena, plan_rank(layout, Rank(rank)), 0)
            finally:
                os.close(fd)
            assert held == {name: raw_bytes(data) for name, data in local_arrays(layout, rank, arrays).items()}
            return prepared

        with ThreadPoolExecutor(num_ranks) as pool:
            return list(pool.map(work, range(num_ranks)))

    @property
    def read_bytes(self) -> int:
        return sum(store.read_bytes for store in self.stores)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Ends what the services of a process leave to its end."""
    with ExitStack() as stack:

        class Server(PeerServer):
            def start(self) -> None:
                stack.callback(self.close)
                super().start()

        class Client(PeerClient):
            def __init__(self, *given: object, **named: object) -> None:
                super().__init__(*given, **named)  # type: ignore[arg-type]
                stack.callback(self.close)

        monkeypatch.setattr(store_services, "PeerServer", Server)
        monkeypatch.setattr(store_services, "PeerClient", Client)
        yield stack


def saved(root: Path, layout: Layout) -> None:
    with closing(LocalStore(root)) as store:
        save(store, layout, step=STEP, write_id=WRITE)


def flat_on(dp: int) -> Layout:
    """Only what no two ranks hold alike, or who is late would get it from another's memory."""
    layout = layout_on(dp=dp)
    return replace(layout, arrays=tuple(one for one in layout.arrays if one.flat_over is not None))


ALL, NONE = dict.fromkeys(range(NODES), True), dict.fromkeys(range(NODES), False)


@pytest.mark.parametrize("name", ["same mesh, flat", "dp halved", "tp halved", "tp for dp"])
def test_a_directory_of_the_network_is_read_once_by_the_fleet_on_any_mesh(
    tmp_path: Path, stack: ExitStack, name: str
) -> None:
    before, after = MESHES[name]
    saved(tmp_path, before)
    fleet = Fleet(stack, tmp_path, ALL)
    told = fleet.restore(after)
    assert fleet.read_bytes / needed_bytes(before) < 1.01
    assert sum(one.store_bytes for one in told) == fleet.read_bytes
    assert sum(one.peer_bytes for one in told) > 0


@pytest.mark.parametrize(("share_reads", "are_network"), [("auto", NONE), ("never", ALL)])
def test_a_directory_of_the_nodes_own_or_one_that_shall_not_be_shared_is_read_by_each_for_itself(
    tmp_path: Path,
    stack: ExitStack,
    share_reads: ShareReads,
    are_network: Mapping[int, bool],
) -> None:
    layout = flat_on(NODES)
    saved(tmp_path, layout)
    fleet = Fleet(stack, tmp_path, are_network, share_reads)
    told = fleet.restore(layout)
    assert fleet.read_bytes / needed_bytes(layout) > 2
    assert [one.peer_bytes for one in told] == NODES * [0]


def test_nodes_that_see_other_mounts_restore_all_the_same_and_those_that_share_are_answered_by_all(
    tmp_path: Path, stack: ExitStack
) -> None:
    """One node takes the directory for its own: it asks nobody, and costs its own reads alone."""
    layout = flat_on(NODES)
    saved(tmp_path, layout)
    fleet = Fleet(stack, tmp_path, {**ALL, 2: False})
    told = fleet.restore(layout)
    assert [one.peer_bytes > 0 for one in told] == [True, True, False, True]
    assert fleet.read_bytes / needed_bytes(layout) < 1.01 + told[2].store_bytes / needed_bytes(layout)


def test_what_ranks_of_a_node_have_in_common_crosses_the_network_once_on_their_own_layout_too(
    tmp_path: Path, stack: ExitStack
) -> None:
    layout = flat_on(2 * NODES)
    saved(tmp_path, layout)
    fleet = Fleet(stack, tmp_path, ALL, ranks_per_node=2)
    told = fleet.restore(layout)
    assert fleet.read_bytes / needed_bytes(layout) < 1.01
    assert 0 < sum(one.peer_bytes for one in told) < NODES * needed_bytes(layout)
