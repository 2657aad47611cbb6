"""A whole gang that lost its memory reads its checkpoint from the store once, not once a rank. Real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from agent.stage import setup_for, stage
from agent.test_peer_copies import MIB, NODES, all_restored, restored
from behemoth.base.ids import NodeId
from behemoth.checkpoint.paths import commit_key, rejected_key
from behemoth.storage.open import open_store
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.reports import RanksRestored, Report
from behemoth.wire.setup import Setup

NEEDED_BYTES = NODES * MIB << 20


def test_a_gang_without_memory_reads_each_byte_of_the_store_once(tmp_path: Path) -> None:
    async def scene() -> None:
        setup = setup_for(tmp_path, "train_shares", ranks=1, nodes=NODES, mib=MIB)
        setup = structs.replace(setup, share_reads="always")
        async with stage(tmp_path, setup, num_agents=NODES) as here:
            here.start_gang(1)
            await all_restored(here, 1)
            saved = await here.save(30, "a1-1", 1)
            await here.replace_agents(*range(NODES))
            sources = await restored(here, 2, saved)
            assert (sources.memory, sources.peer, sources.missed) == (0, 0, "")
            assert 0 < sources.store_bytes / NEEDED_BYTES <= 1.1
            assert sources.peer_bytes > 0

    asyncio.run(scene())


@pytest.mark.parametrize(("fs_type", "most"), [("nfs4", 1.1), pytest.param("ext4", 5.0, marks=pytest.mark.longer)])
def test_a_gang_of_another_mesh_reads_each_byte_of_a_directory_once_if_it_lies_on_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs_type: str, most: float
) -> None:
    """Two ranks have saved, four restore. Each process of a node is told by a file of what type the mount is; where it
    is a node's own, each rank reads a chunk of 8 MiB, which is all there is."""
    (tmp_path / "mountinfo").write_text(f"1 0 8:1 / / rw - ext4 disk rw\n2 1 0:2 / {tmp_path} rw - {fs_type} any rw\n")
    mounts = tmp_path / "mountinfo"
    (tmp_path / "sitecustomize.py").write_text(
        f"from behemoth.storage import mounts\nmounts.MOUNTINFO = {str(mounts)!r}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def setup_on(nodes: int) -> Setup:
        setup = setup_for(tmp_path, "train_shares", ranks=1, nodes=nodes, mib=NODES * MIB // nodes)
        return structs.replace(setup, share_reads="auto")

    def both_restored(heard: Sequence[tuple[NodeId, Report]]) -> bool | None:
        return {node for node, report in heard if isinstance(report, RanksRestored)} == {"n0", "n1"} or None

    async def save() -> RestoreFrom:
        async with stage(tmp_path, setup_on(2), num_agents=2) as here:
            here.start_gang(1)
            await here.wait_until(both_restored)
            return await here.save(30, "a1-1", 1)

    async def restore(saved: RestoreFrom) -> None:
        async with stage(tmp_path, setup_on(NODES), num_agents=NODES) as here:
            sources = await restored(here, 2, saved)
            assert (sources.memory, sources.peer) == (0, 0)
            assert most - 1.1 < sources.store_bytes / NEEDED_BYTES <= most
            assert (sources.peer_bytes > 0) is (fs_type == "nfs4")

    asyncio.run(restore(asyncio.run(save())))


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
