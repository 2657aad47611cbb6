"""Saves small worlds in company: every rank is a thread of one process, and all go on together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint import part_cuts, uploads
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.exchange import Company, Exchange, LocalExchange, OpenWrites
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.part_cuts import cut_parts
from behemoth.checkpoint.part_plan import plan_parts
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import stage
from behemoth.checkpoint.upload_writer import upload_rank
from behemoth.checkpoint.uploads import plan_uploads
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import SavesTo, UploadsParts
from checkpoint.checkpoint_rig import Logical, arena_of, local_arrays


@contextmanager
def small_parts(least: int, single: int) -> Iterator[None]:
    """Parts of so many bytes at least, objects below `single` in one request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_cuts, "MIN_PART_BYTES", least)
        patch.setattr(uploads, "SINGLE_BYTES", single)
        _clear_caches()
        try:
            yield
        finally:
            _clear_caches()  # or a test that fails would take others with it


def _clear_caches() -> None:
    for cached in (cut_parts, plan_uploads, plan_parts):
        cached.cache_clear()


@dataclass
class World:
    """All ranks of a layout, staged, each with what it needs for its write. `place` gives a rank where it can be
    asked, and its way to the others; by default they are all of one node."""

    layout: Layout
    step: Step
    write_id: WriteId
    arenas: Mapping[Rank, tuple[Arena, int]]
    place: Callable[[Rank], tuple[OpenWrites, Exchange]] | None = None
    open_writes: OpenWrites = field(default_factory=OpenWrites)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def write(self, store: SavesTo, rank: Rank) -> Receipt:
        """By one rank, as the store takes it; the first error gives the write up for all."""
        arena, generation = self.arenas[rank]
        write = RankWrite(
            prefix=step_prefix(self.step, self.write_id),
            layout=self.layout,
            plan=plan_rank(self.layout, rank),
            arena=arena,
            generation=generation,
            attempt=Attempt(1),
            threads=2,
            cancelled=self.cancelled.is_set,
            updated_step=self.step,
        )
        company = Company(*self._place(rank))
        try:
            if isinstance(store, UploadsParts):
                receipt = upload_rank(store, write, company)
            else:
                receipt = write_rank(store, write, company)
        except BaseException:
            self.cancelled.set()
            raise
        return Receipt.decode(receipt.encode())

    def _place(self, rank: Rank) -> tuple[OpenWrites, Exchange]:
        if self.place is not None:
            return self.place(rank)
        return self.open_writes, LocalExchange(self.open_writes, self.write_id)

    def write_all(self, store: SavesTo) -> list[Receipt]:
        """By all ranks at once. Raises the first error that says more than that others have given up."""
        with ThreadPoolExecutor(len(self.arenas), thread_name_prefix="rank") as pool:
            futures = [pool.submit(self.write, store, rank) for rank in self.arenas]
            errors = [future.exception() for future in futures]
        told = [error for error in errors if error is not None]
        if told:
            raise next((error for error in told if getattr(error, "code", "") not in GIVEN_UP), told[0])
        return [future.result() for future in futures]


GIVEN_UP = ("save-cancelled", "write-failed", "upload-gone")
"""Codes of errors that follow from that of another rank."""


@contextmanager
def staged_world(
    layout: Layout,
    arrays: Logical,
    *,
    step: int = 1,
    write_id: str = "a1-1",
    other: Mapping[int, Logical] | None = None,
) -> Iterator[World]:
    """`other` gives single ranks other arrays."""
    with ExitStack() as stack:
        arenas = {}
        for rank in map(Rank, range(layout.mesh.num_ranks)):
            plan = plan_rank(layout, rank)
            arena = stack.enter_context(arena_of(plan))
            local = local_arrays(layout, rank, (other or {}).get(rank, arrays))
            arenas[rank] = arena, stage(arena, plan, local, WriteId(write_id), Step(step)).generation
        yield World(layout=layout, step=Step(step), write_id=WriteId(write_id), arenas=arenas)


def upload_all_ranks(
    store: UploadsParts, layout: Layout, arrays: Logical, *, step: int = 1, write_id: str = "a1-1"
) -> list[Receipt]:
    with staged_world(layout, arrays, step=step, write_id=write_id) as world:
        return world.write_all(store)
