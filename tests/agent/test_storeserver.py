"""How long the store process keeps a rank's memory mapped."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from behemoth.agent.storeserver import _StoreServer
from behemoth.agent.storewire import STORE_ORDERS, OpenStore
from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from behemoth.wire.session import Peer

RANKS = 4


def layout_of(size: int) -> Layout:
    return Layout(
        mesh=Mesh(dp=RANKS, edp=RANKS), arrays=(ArraySpec(name="w", dtype="uint8", shape=(size,), flat_over="dp"),)
    )


def mapped_memories() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split("memfd:")[1].split()[0] for line in lines if "memfd:store-test" in line]


def test_memory_that_the_agent_has_replaced_does_not_stay_mapped() -> None:
    mine, other = socket.socketpair()
    server = _StoreServer(
        Peer(mine, STORE_ORDERS), OpenStore(job=0, url="x", threads=1, num_ranks=2), lambda _url: MemoryStore()
    )
    for turn, (rank, size) in enumerate([(0, 64), (1, 64), (0, 128), (2, 128), (3, 128)]):
        fd = os.memfd_create(f"store-test-{turn}", os.MFD_ALLOW_SEALING)
        plan = plan_rank(layout_of(size), Rank(rank))
        arena = server._mapped(Rank(rank), fd, plan)
        assert server._mapped(Rank(rank), fd, None) is arena
        os.close(fd)
        del arena
    assert sorted(mapped_memories()) == ["store-test-3", "store-test-4"]
    mine.close()
    other.close()
