"""The store process of the node that holds all ranks of the resharding benchmark: what of a real one restores a rank.

    reshard_node.py AXIS WORLD NUM_LAYERS FOLDER

Makes the staging memory of all ranks and tells where it lies; then each line of stdin is an order to restore them all
at the same time, answered with the bytes that this process has read meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from programs import reshard_scene as scene
from programs.told import read_bytes, tell

from agent.lone_node import lone_preparing
from behemoth.agent.storewire import Prepare, Prepared, RestoreSource
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.storage.local import LocalStore


class Node:
    """All ranks of a layout, one thread each, several where files are cold."""

    def __init__(self, axis: str, world: int, num_layers: int, folder: Path) -> None:
        store = LocalStore(folder / "behemoth")
        self._layout = scene.layout(axis, world, num_layers).encode()
        self._preparing = lone_preparing(store, ranks_per_node=world, run_name="bench")
        self.fds = [os.memfd_create(f"bench-arena-{rank}", os.MFD_ALLOW_SEALING) for rank in range(world)]
        begin = time.perf_counter()
        self._prepare_all(None)
        self.format_s = time.perf_counter() - begin

    def restore(self, source: RestoreSource) -> float:
        """Seconds until the last rank has it. Nothing is known from the time before."""
        self._preparing.clear()
        begin = time.perf_counter()
        origins = [one.origin for one in self._prepare_all(source)]
        assert origins == len(self.fds) * ["store"], origins
        return time.perf_counter() - begin

    def _prepare_all(self, source: RestoreSource | None) -> list[Prepared]:
        def prepare(rank: int) -> Prepared:
            order = Prepare(job=rank, rank=Rank(rank), layout=self._layout, is_new=source is None, source=source)
            return self._preparing.prepare(order, self.fds[rank])

        with ThreadPoolExecutor(len(self.fds)) as pool:
            return list(pool.map(prepare, range(len(self.fds))))


def main() -> None:
    axis, world, num_layers, folder = sys.argv[1:]
    node = Node(axis, int(world), int(num_layers), Path(folder))
    tell({"format": node.format_s, "arenas": [f"/proc/{os.getpid()}/fd/{fd}" for fd in node.fds]})
    source = RestoreSource(step=Step(1), write_id=WriteId("a1-1"), held_in=None, spare=0)
    for _ in sys.stdin:
        before = read_bytes()
        seconds = node.restore(source)
        tell({"read": seconds, "bytes": read_bytes() - before})


if __name__ == "__main__":
    main()
