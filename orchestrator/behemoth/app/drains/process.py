"""What the drain process of a run does: one checkpoint after the other into the second store, and retention there.

A process of its own, so that reading, proving and sending take nothing from the coordinator's loop. It is the only
writer of the second store; it decides nothing about which checkpoint comes next. Neighbours: `drainer`, which orders,
and `checkpoint.draining`, which copies.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from behemoth.app.batches.messages import Failed
from behemoth.app.drains.giving_way import GivingWay
from behemoth.app.drains.messages import TO_DRAIN, Drain, Drained, GiveWay, Settings, ToDrain, received, send
from behemoth.base.errors import BehemothError, Unavailable
from behemoth.checkpoint.commit_log import BadCommit, commits, reject, rejected_writes
from behemoth.checkpoint.draining import copy_checkpoint
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.owner import require_own
from behemoth.checkpoint.pacing import Pacer
from behemoth.checkpoint.paths import COMMITS
from behemoth.checkpoint.pins import pinned_writes
from behemoth.checkpoint.signposts import Write
from behemoth.policy.retention import Dated, Retention, expired
from behemoth.ports import ObjectStore, SavesTo
from behemoth.state.effect import CommitRef

if TYPE_CHECKING:
    from behemoth.storage.local import LocalStore
    from behemoth.storage.s3 import S3Store

NICENESS = 10
"""Whoever trains and saves on this machine has its processors first; `giving_way` is about the rest."""


def serve_drains(sock: socket.socket, open_store: Callable[[str], LocalStore | S3Store]) -> None:
    """Until the leader is gone; one order at a time. Blocks."""
    os.nice(NICENESS)
    messages = received(sock, TO_DRAIN)
    settings = next(messages, None)
    if not isinstance(settings, Settings):
        return
    orders: SimpleQueue[Drain | None] = SimpleQueue()
    way = GivingWay()
    hearing = threading.Thread(target=_hear, args=(messages, orders, way), name="drain-orders", daemon=True)
    hearing.start()
    with closing(open_store(settings.source)) as source, closing(open_store(settings.target)) as target:
        while (order := orders.get()) is not None:
            send(sock, _answer(settings, source, target, order.commit, way))
    hearing.join()


def _hear(messages: Iterator[ToDrain], orders: SimpleQueue[Drain | None], way: GivingWay) -> None:
    """On a thread of its own: a save begins while something is copied."""
    with suppress(OSError):  # the leader was killed
        for message in messages:
            match message:
                case Drain():
                    orders.put(message)
                case GiveWay(is_saving=is_saving):
                    way.tell(is_saving)
                case Settings():
                    break  # they are told once
    orders.put(None)


def _answer(
    settings: Settings, source: ObjectStore, target: SavesTo, commit: CommitRef, way: GivingWay
) -> Drained | Failed:
    try:
        return drain_one(settings, source, target, commit, way=way)
    except BehemothError as error:
        return Failed.of(error)


def drain_one(
    settings: Settings, source: ObjectStore, target: SavesTo, commit: CommitRef, *, way: GivingWay | None = None
) -> Drained:
    """Copy a commit, and let go what the second store need not keep; should that fail, the commit is there all the
    same. Idempotent. Raises what `copy_checkpoint` does, and Conflict when the second store has become another run's.
    """
    began_s = time.monotonic()
    require_own(target, settings.run_uid, url=settings.target)
    reject_too(source, target)
    pacer = None if settings.rate is None else Pacer(bytes_per_s=settings.rate, stop=threading.Event())

    def pace(num_bytes: int) -> None:
        if way is not None:
            way.wait()
        if pacer is not None:
            pacer.take(num_bytes, what="drain")

    # What retention had given up above may still be here when the run, whose later checkpoints did not restore, has
    # gone back behind its step and comes to it again. A pin here has somebody decide.
    copied = copy_checkpoint(source, target, commit, threads=settings.threads, pace=pace, replaces=True)
    seconds = time.monotonic() - began_s
    untidy = ""
    try:
        retain(source, target, settings.retention)
    except BehemothError as error:
        untidy = f"{error.message}; {error.hint}" if error.hint else error.message
    return Drained(num_bytes=copied.num_bytes, seconds=seconds, untidy=untidy)


def reject_too(source: ObjectStore, target: ObjectStore) -> None:
    """What did not restore above is no checkpoint below, and neither is a damaged record: their steps come again."""
    rejected = rejected_writes(source)
    for found in commits(target):
        if isinstance(found, BadCommit):
            if found.is_damaged and found.step is not None:
                reject(target, found, found.error.message)
        elif (found.step, found.write_id) in rejected:
            reject(target, found, "it was rejected in the store that it was drained from")


def retain(source: ObjectStore, target: ObjectStore, retention: Retention) -> None:
    """Delete what retention gives up in the second store, and what cut-off copies left. A pin in either store keeps.
    Raises Corrupt as `pinned_writes` does, and Unavailable where the first store shows no commit at all, though what
    was just drained is held there: one that is not mounted any more looks like one without pins."""
    pinned_above = pinned_writes(source)
    if not any(True for _ in source.list(COMMITS)):
        raise Unavailable(
            "first store: expected the commit that was drained, got none any more, so nobody can tell what is pinned",
            hint="mount it, or put it back; what the second store need not keep goes after the next copy",
            code="store-away",
        )

    def drop(found: Sequence[CommitRef | BadCommit], pinned: Collection[Write]) -> list[CommitRef]:
        intact = [one for one in found if isinstance(one, CommitRef)]
        dated = [Dated(step=one.step, committed_us=one.committed_us) for one in intact]
        all_pinned = pinned_above.union(pinned)
        kept = [one.step for one in intact if (one.step, one.write_id) in all_pinned]
        gone = set(expired(dated, retention, pinned=kept))
        return [one for one in intact if one.step in gone]

    # Whoever was killed in a copy may have sent its commit. What is rejected here says nothing of the store above.
    execute(target, plan_gc(target, drop=drop, in_flight=(), unsure=lambda _write_id: True))
