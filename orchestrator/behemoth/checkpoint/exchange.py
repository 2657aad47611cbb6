"""What the ranks of one write ask of each other while they write it, and this node's part of the answers.

Behind a chunk that several ranks write stands a CRC that none of them knows. On object storage, a part may hold bytes
of several ranks too, its upload is begun by one rank and fed by others, and completing it takes the receipts of all.
Everything is asked for, nothing is sent unasked, so a question may be repeated and a rank that is lost leaves nothing
behind but questions that fail. Waits end with the answer, with the end of the asked rank's own write, or with the
asker's patience. Neighbours: `end_writer` and `upload_writer`, which ask, and the agent, which asks other nodes.
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Rank, UploadId, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.crc import crc_of
from behemoth.checkpoint.part_plan import Fragment, ShardId
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.ports import PartReceipt

_LOOK_S = 0.05
"""How soon a wait sees that it was given up."""

OUT_OF_TIME = "asker-late"
"""Code of a Timeout of the asker's own, which says nothing of who was asked."""

_T = TypeVar("_T")
Given = Callable[[], bool]
"""Asked during a wait: whether whoever asks has given up. It may raise an error of its own instead."""


class SentPart(NamedTuple):
    """A part that was uploaded. The store tells the `receipt`, its sender the CRC of what chunks have in it."""

    shard: ShardId
    receipt: PartReceipt
    payload_crc: int
    payload_bytes: int


class Exchange(Protocol):
    """Asks a rank of the write, wherever it is. Exactly these four, one for each thing that only another rank knows:
    bytes, CRCs, upload ids, receipts. All block until the answer is there.

    They raise Conflict when the rank has given the write up or `cancelled` says so, Unavailable or Timeout when nobody
    answers for it any more.
    """

    def fetch(self, rank: Rank, fragments: Sequence[Fragment], into: memoryview, *, cancelled: Given) -> None:
        """The fragments' bytes, one behind the other; they fill `into` exactly."""
        ...

    def crcs(self, rank: Rank, fragments: Sequence[Fragment], *, cancelled: Given) -> Sequence[int]:
        """The CRC-32C of each fragment."""
        ...

    def upload_ids(self, rank: Rank, shards: Sequence[ShardId], *, cancelled: Given) -> Sequence[UploadId]:
        """Of shards that the rank completes."""
        ...

    def receipts(self, rank: Rank, completer: Rank, *, first: int, cancelled: Given) -> Sequence[SentPart]:
        """Parts that the rank uploads of shards which `completer` completes, once all of them are sent: from the
        `first` on as many as fit into an answer, none behind the last."""
        ...


class OpenWrite:
    """One rank's own part of one write, as others see it. Thread-safe: its writer tells, everybody asks.

    It outlives the writer, since others may still ask, and does not keep the arena: memory that was replaced goes."""

    def __init__(self, plan: RankPlan, arena: Arena, generation: int, sequence: int) -> None:
        self.rank = plan.rank
        self._arena_ref = weakref.ref(arena)
        self._generation = generation
        self._sequence = sequence
        self._plan = plan
        self._changed = threading.Condition()
        self._upload_ids: Mapping[ShardId, UploadId] | None = None
        self._sent: Mapping[Rank, Sequence[SentPart]] | None = None
        self._crcs: Mapping[tuple[int, int, int, int], int] = {}
        self._failure: str | None = None

    @cached_property
    def _spans(self) -> dict[tuple[int, int], list[Span]]:
        return _by_chunk(self._plan.spans)

    def begun(self, upload_ids: Mapping[ShardId, UploadId]) -> None:
        """All uploads that this rank completes have begun."""
        with self._changed:
            self._upload_ids = upload_ids
            self._changed.notify_all()

    def sent(self, parts: Mapping[Rank, Sequence[SentPart]]) -> None:
        """All parts of this rank are in the store; by completer."""
        with self._changed:
            self._sent = parts
            self._changed.notify_all()

    def summed(self, crcs: Sequence[int]) -> None:
        """The CRC of every span, in the plan's order, as it was written: who asks for a span's is told that."""
        self._crcs = {span[:4]: crc for span, crc in zip(self._plan.spans, crcs, strict=True)}

    def failed(self, reason: str) -> None:
        """Whoever waits for this rank need not."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()

    def views(self, fragment: Fragment) -> list[memoryview]:
        """The fragment's bytes in the arena, in order; the snapshot must be whole. Raises Invalid when the rank does
        not hold them."""
        spans = self._spans.get((fragment.array, fragment.chunk), [])
        data, views = self._arena.filling(self._generation), []
        begin, end = fragment.offset, fragment.offset + fragment.length
        for span in spans[max(0, bisect_right(spans, begin, key=lambda span: span.offset) - 1) :]:
            if begin < end and span.offset <= begin < span.offset + span.length:
                stop = min(end, span.offset + span.length)
                at = span.arena_offset + begin - span.offset
                views.append(data[at : at + stop - begin])
                begin = stop
        if begin < end:
            raise Invalid(
                f"rank {self.rank}: expected to hold bytes {fragment.offset} .. {end} of chunk {fragment.chunk} of "
                f"array {fragment.array}, got none from byte {begin} on",
                code="fragment",
            )
        return views

    def views_of(self, fragments: Sequence[Fragment], *, cancelled: Given) -> list[memoryview]:
        """Of all of them, once the snapshot is whole."""
        self._wait_whole(cancelled)
        return [view for fragment in fragments for view in self.views(fragment)]

    def copy(self, fragments: Sequence[Fragment], into: memoryview, *, cancelled: Given) -> None:
        """Fill `into` with the fragments' bytes. Raises Conflict when the snapshot was replaced meanwhile."""
        at = 0
        for view in self.views_of(fragments, cancelled=cancelled):
            into[at : at + len(view)] = view
            at += len(view)
        self.check_held()

    def crcs_of(self, fragments: Sequence[Fragment], *, cancelled: Given) -> list[int]:
        """The CRC of each: told by its writer, or computed once the snapshot is whole. Raises Conflict as `copy`
        does."""
        told = [self._crcs[fragment[1:]] for fragment in fragments if fragment[1:] in self._crcs]
        if len(told) == len(fragments):
            return told
        self._wait_whole(cancelled)
        found = [crc_of(self.views(fragment)) for fragment in fragments]
        self.check_held()
        return found

    def ids_of(self, shards: Sequence[ShardId], *, cancelled: Given) -> list[UploadId]:
        """Raises Invalid for a shard that this rank does not complete."""
        known = self._wait(lambda: self._upload_ids, "the uploads to begin", cancelled)
        if unknown := [shard for shard in shards if shard not in known]:
            raise Invalid(f"rank {self.rank}: expected shards that it completes, got {unknown[0]}", code="fragment")
        return [known[shard] for shard in shards]

    def sent_to(self, completer: Rank, *, cancelled: Given) -> Sequence[SentPart]:
        return self._wait(lambda: self._sent, "its parts to be sent", cancelled).get(completer, ())

    def is_held(self) -> bool:
        """Whether the snapshot is still that of this write."""
        try:
            return self._arena.sealed(self._generation, self._sequence) is not None
        except Conflict:
            return False

    @property
    def _arena(self) -> Arena:
        arena = self._arena_ref()
        if arena is None:
            raise Conflict(f"rank {self.rank}: its memory was given up", code="snapshot-replaced")
        return arena

    def check_held(self) -> None:
        """Raises Conflict when it is not."""
        if not self.is_held():
            raise Conflict(f"rank {self.rank}: its snapshot was given up", code="snapshot-replaced")

    def _wait_whole(self, cancelled: Given) -> None:
        while self._arena.sealed(self._generation, self._sequence) is None:
            self._give_up_if(cancelled, "its snapshot to be whole")
            time.sleep(_LOOK_S)

    def _wait(self, look: Callable[[], _T | None], what: str, cancelled: Given) -> _T:
        with self._changed:
            while (found := look()) is None:
                self._give_up_if(cancelled, what)
                self._changed.wait(_LOOK_S)
            return found

    def _give_up_if(self, cancelled: Given, what: str) -> None:
        if self._failure is not None:
            raise Conflict(f"rank {self.rank}: its write failed: {self._failure}", code="write-failed")
        if cancelled():
            raise Conflict(f"rank {self.rank}: given up while waiting for {what}", code="save-cancelled")


class OpenWrites:
    """The writes of this process's ranks. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._writes: dict[Rank, dict[WriteId, OpenWrite]] = {}

    def enter(self, write_id: WriteId, write: OpenWrite) -> None:
        """From now on the rank can be asked about this write, and about the last one of the others: a save that was
        given up may come here late, and must not take the place of the one that is under way."""
        with self._changed:
            known = self._writes.setdefault(write.rank, {})
            known.pop(write_id, None)
            known[write_id] = write
            for old in list(known)[:-2]:
                del known[old]
            self._changed.notify_all()

    def find(self, write_id: WriteId, rank: Rank, *, cancelled: Given) -> OpenWrite:
        """Waits for the rank to begin with the write. Raises Conflict when cancelled."""
        with self._changed:
            while True:
                found = self._writes.get(rank, {}).get(write_id)
                if found is not None:
                    return found
                if cancelled():
                    raise Conflict(f"rank {rank}: given up while waiting for it to begin", code="save-cancelled")
                self._changed.wait(_LOOK_S)


class Company(NamedTuple):
    """Where the other ranks of a write find this one, and how it asks them. All must write at the same time."""

    open_writes: OpenWrites
    exchange: Exchange


def in_turn(ranks: Iterable[Rank], asker: Rank, num_ranks: int) -> list[Rank]:
    """Whom to ask first: from the asker's own number on. If all began with the lowest, that one would be asked by all
    at once."""
    return sorted(ranks, key=lambda rank: (rank - asker) % num_ranks)


class LocalExchange:
    """An Exchange among ranks of one process."""

    def __init__(self, open_writes: OpenWrites, write_id: WriteId) -> None:
        self._open_writes = open_writes
        self._write_id = write_id

    def fetch(self, rank: Rank, fragments: Sequence[Fragment], into: memoryview, *, cancelled: Given) -> None:
        self._of(rank, cancelled).copy(fragments, into, cancelled=cancelled)

    def crcs(self, rank: Rank, fragments: Sequence[Fragment], *, cancelled: Given) -> Sequence[int]:
        return self._of(rank, cancelled).crcs_of(fragments, cancelled=cancelled)

    def upload_ids(self, rank: Rank, shards: Sequence[ShardId], *, cancelled: Given) -> Sequence[UploadId]:
        return self._of(rank, cancelled).ids_of(shards, cancelled=cancelled)

    def receipts(self, rank: Rank, completer: Rank, *, first: int, cancelled: Given) -> Sequence[SentPart]:
        return self._of(rank, cancelled).sent_to(completer, cancelled=cancelled)[first:]

    def _of(self, rank: Rank, cancelled: Given) -> OpenWrite:
        return self._open_writes.find(self._write_id, rank, cancelled=cancelled)


def _by_chunk(spans: Sequence[Span]) -> dict[tuple[int, int], list[Span]]:
    """A rank's spans of each chunk, in order of their offsets."""
    found: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        found.setdefault((span.array, span.chunk), []).append(span)
    for of_chunk in found.values():
        of_chunk.sort(key=lambda span: span.offset)
    return found
