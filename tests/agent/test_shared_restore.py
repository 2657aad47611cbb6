"""A whole gang that lost its memory reads its checkpoint from the store once, not once a rank. Real processes."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from agent.stage import setup_for, stage
from agent.test_peer_copies import MIB, NODES, all_restored, restored
from behemoth.checkpoint.paths import commit_key, rejected_key
from behemoth.storage.open import open_store

NEEDED_BYTES = NODES * MIB << 20


@pytest.mark.parametrize(
    ("share_reads", "most"), [("always", 1.1), pytest.param("auto", 5.0, marks=pytest.mark.longer)]
)
def test_a_gang_without_memory_reads_each_byte_of_the_store_once(tmp_path: Path, share_reads: str, most: float) -> None:
    async def scene() -> None:
        setup = structs.replace(
            setup_for(tmp_path, "train_shares", ranks=1, nodes=NODES, mib=MIB), share_reads=share_reads
        )
        async with stage(tmp_path, setup, num_agents=NODES) as here:
            here.start_gang(1)
            await all_restored(here, 1)
            saved = await here.save(30, "a1-1", 1)
            await here.replace_agents(*range(NODES))
            sources = await restored(here, 2, saved)
            assert (sources.memory, sources.peer, sources.missed) == (0, 0, "")
            # A directory reads for each rank by itself unless it is told otherwise: here four times a chunk of 8 MiB.
            assert most - 1.1 < sources.store_bytes / NEEDED_BYTES <= most
            assert (sources.peer_bytes > 0) is (share_reads == "always")

    asyncio.run(scene())


def test_a_node_restores_the_commit_that_it_was_told_by_name_and_looks_at_no_other_object(tmp_path: Path) -> None:
    """A marker that takes the commit back is seen by who lists, and by nobody else: the leader has looked."""

    async def scene() -> None:
        setup = setup_for(tmp_path, "train_shares", ranks=1, nodes=NODES, mib=1)
        async with stage(tmp_path, setup, num_agents=NODES) as here:
            here.start_gang(1)
            await all_restored(here, 1)
            saved = await here.save(30, "a1-1", 1)
            await here.replace_agents(*range(NODES))
            with closing(open_store(setup.store_url)) as store:
                sizes = {info.key: info.size_bytes for info in store.list("commits")}
                store.create(rejected_key(saved.step, saved.write_id), b"")
            here.start_gang(2, restore=saved, record_bytes=sizes[commit_key(saved.step)])
            told = await all_restored(here, 2)
            assert [one.step for one in told] == NODES * [saved.step]
            assert sum(one.store_bytes for one in told) > 0

    asyncio.run(scene())
