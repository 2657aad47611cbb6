"""The ranks of one node that restore a checkpoint from a directory by their store process's own code, for tests."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from agent.lone_node import lone_preparing
from behemoth.agent.storewire import Prepare, Prepared, RestoreSource
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.ports import Into
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import Logical, save, unstaged

STEP, WRITE_ID = Step(5), WriteId("a1-1")


class ReadLog(LocalStore):
    """A directory that counts what is read from it; thread-safe. `before` is called with the key before each read."""

    def __init__(self, root: Path, before: Callable[[str], None] = lambda _key: None) -> None:
        super().__init__(root)
        self._before = before
        self._lock = threading.Lock()
        self.num_reads: Counter[tuple[str, int]] = Counter()

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._before(key)
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        with self._lock:
            self.num_reads[key, offset_bytes] += 1


class Node:
    """`ranks_per_node` ranks from `first` on, of `layout`."""

    def __init__(self, store: ReadLog, layout: Layout, *, ranks_per_node: int, first: int = 0) -> None:
        self.store = store
        self._layout = layout
        self._ranks_per_node = ranks_per_node
        self._fds: dict[Rank, int] = {}
        self.take(first)
        self._preparing = lone_preparing(store, ranks_per_node=ranks_per_node, run_name="toy")

    def take(self, first: int) -> None:
        """Has these ranks from now on, in memory of their own."""
        self.close()
        end = min(first + self._ranks_per_node, self._layout.mesh.num_ranks)
        self.ranks = [Rank(rank) for rank in range(first, end)]
        self._fds = {rank: os.memfd_create(f"restoring-{rank}", os.MFD_ALLOW_SEALING) for rank in self.ranks}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def clear(self) -> None:
        """As when its ranks save again."""
        self._preparing.clear()

    def restore(self, rank: Rank, intake: Intake = AS_SAVED) -> Prepared:
        source = RestoreSource(step=STEP, write_id=WRITE_ID, held_in=None, spare=0)
        encoded = self._layout.encode()
        order = Prepare(job=1, rank=rank, layout=encoded, is_new=True, source=source, intake=intake.encode())
        return self._preparing.prepare(order, self._fds[rank])

    def restore_all(self, intake: Intake = AS_SAVED) -> list[Prepared]:
        """All ranks at the same time."""
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            return list(pool.map(lambda rank: self.restore(rank, intake), self.ranks))

    def held(self, rank: Rank) -> dict[str, bytes]:
        """What the rank has got, by name of the array."""
        with closing(Arena.open(self._fds[rank])) as arena:
            return unstaged(arena, plan_rank(self._layout, rank), 0)


@contextmanager
def saved_in_files(layout: Layout, arrays: Logical) -> Iterator[Path]:
    """A folder with a checkpoint of these arrays."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with closing(LocalStore(root)) as store:
            save(store, layout, arrays, step=STEP, write_id=WRITE_ID)
        yield root


@contextmanager
def nodes_of(
    root: Path, layout: Layout, *, ranks_per_node: int, before: Callable[[str], None] = lambda _key: None
) -> Iterator[list[Node]]:
    """All nodes on which the ranks of a layout lie."""
    nodes: list[Node] = []
    try:
        for first in range(0, layout.mesh.num_ranks, ranks_per_node):
            nodes.append(Node(ReadLog(root, before), layout, ranks_per_node=ranks_per_node, first=first))
        yield nodes
    finally:
        for node in nodes:
            node.close()
            node.store.close()
