"""A node's store process answers its peers, before and after it was killed. Real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.stage import LIMIT_S, PEER_KEY, RUN, Stage, descendants, kill, stage
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerAddress, PeerIdentity
from behemoth.base.errors import Denied, NotFound
from behemoth.base.ids import NodeId, Rank, WriteId
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.wire.peers import AskSnapshot, SnapshotFound
from behemoth.wire.reports import Beat, Hello, ReceiptBatch


def store_pid(here: Stage, node: str = "n0") -> int:
    """The store process of a node's agent."""
    for pid in descendants(here.agents[NodeId(node)].pid):
        if "behemoth.wiring.store" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return pid
    raise AssertionError(f"no store process\n{here.story()}")


async def address_of(here: Stage, node: str = "n0") -> PeerAddress:
    hello = await here.wait_for(Hello, lambda hello: hello.node == node)
    return PeerAddress(node=NodeId(node), host=hello.host, port=hello.peer_port)


async def plan_of(here: Stage, rank: int) -> RankPlan:
    batch = await here.wait_for(ReceiptBatch, lambda batch: batch.layout is not None)
    assert batch.layout is not None
    return plan_rank(Layout.decode(batch.layout), Rank(rank))


def ask(peer: PeerAddress, write_id: WriteId, plan: RankPlan, *, key: str = PEER_KEY) -> SnapshotFound:
    """As any node would ask that has this key."""
    client = PeerClient(PeerIdentity(run_uid=RUN, node=NodeId("asker"), key=key))
    try:
        question = AskSnapshot(rank=plan.rank, write_id=write_id, layout_digest=plan.layout_digest)
        return client.ask(peer, question, SnapshotFound, into=memoryview(bytearray(4 * len(plan.spans))))
    finally:
        client.close()


async def found_again(peer: PeerAddress, write_id: WriteId, plan: RankPlan) -> SnapshotFound:
    """Once the successor has mapped what the agent shares with it."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await asyncio.to_thread(ask, peer, write_id, plan)
            except NotFound:
                await asyncio.sleep(0.02)


def test_a_store_process_that_was_killed_has_a_successor_at_the_same_port_with_the_same_memory(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path) as here:
            here.start_gang(1)
            await here.wait_for(Beat, lambda beat: beat.step >= 1)
            saved = await here.save(30, "a1-1", 1)
            peer, plan = await address_of(here), await plan_of(here, 0)
            with pytest.raises(Denied):
                await asyncio.to_thread(ask, peer, saved.write_id, plan, key="wrong")
            found = await asyncio.to_thread(ask, peer, saved.write_id, plan)
            assert (found.step, found.data_bytes) == (saved.step, plan.data_bytes)
            killed = store_pid(here)
            kill(killed)
            assert await found_again(peer, saved.write_id, plan) == found
            assert store_pid(here) != killed

    asyncio.run(scene())
