"""A store that breaks at a chosen write: dies before, in the middle of or after it, or gives a wrong answer once.

What it does depends on the plan only, never on time or chance: a test runs once without faults, reads `num_writes`,
and then breaks each of them in turn. Must not repair anything. The neighbours are the suites, which
it passes when the plan is empty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar, assert_never

from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Invalid, Unavailable
from behemoth.base.ids import UploadId
from behemoth.ports import (
    DeletesListed,
    Into,
    MovesObjects,
    ObjectInfo,
    ObjectStore,
    Part,
    PartReceipt,
    UnfinishedUpload,
    UploadsParts,
    WritesRanges,
)
from behemoth.storage.positional import byte_view


class When(Enum):
    """Where in a write the fault strikes."""

    BEFORE = "before"
    MIDDLE = "middle"
    AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Die:
    """The process ends at write number `write` (from 0): every later call, reads too, finds it dead.

    In the middle: of the bytes of `write_parts`, or of the keys of `seal` and `delete`, the first half is done;
    every other write is atomic and has done nothing."""

    write: int
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Write number `write` raises `error` once. `AFTER`: it was done nevertheless, the answer was lost."""

    write: int
    when: When
    error: BehemothError


Fault = Die | Fail


class Crash(BaseException):
    """The process is dead. No Exception, so that no handler of the code under test survives its own death."""


_T = TypeVar("_T")


class FaultyObjects:
    """Passes calls on to `inner`, and breaks as `plan` says. Writes are counted in the order in which they begin."""

    def __init__(self, inner: ObjectStore, *plan: Fault) -> None:
        self._inner = inner
        self._plan = {fault.write: fault for fault in plan}
        self._num_writes = 0
        self._is_dead = False
        self._lock = threading.Lock()

    @property
    def num_writes(self) -> int:
        """How many writes, which are all calls but those that read and list, have begun."""
        return self._num_writes

    def create(self, key: str, data: Buffer) -> None:
        self._write(lambda: self._inner.create(key, data), _nothing)

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        self._write(lambda: self._inner.replace(key, old=old, new=new), _nothing)

    def delete(self, keys: Sequence[str]) -> None:
        self._write(lambda: self._inner.delete(keys), lambda: self._inner.delete(keys[: len(keys) // 2]))

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._refuse_if_dead()
        self._inner.read_into(key, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._refuse_if_dead()
        return self._inner.list(prefix)

    def _write(self, whole: Callable[[], _T], half: Callable[[], object]) -> _T:
        fault = self._next_fault()
        if fault is None:
            return whole()
        match fault.when:
            case When.BEFORE:
                pass
            case When.MIDDLE:
                half()
            case When.AFTER:
                whole()
            case _:
                assert_never(fault.when)
        match fault:
            case Die():
                raise Crash(f"died {fault.when.value} write {fault.write}")
            case Fail():
                raise fault.error
            case _:
                assert_never(fault)

    def _next_fault(self) -> Fault | None:
        with self._lock:
            self._refuse_if_dead()
            fault = self._plan.get(self._num_writes)
            self._num_writes += 1
            self._is_dead = isinstance(fault, Die)
            return fault

    def _refuse_if_dead(self) -> None:
        if self._is_dead:
            raise Crash("the process is dead")


class FaultyStore(FaultyObjects):
    """One with files in it. The inner store must be able to move objects where that is asked for."""

    def __init__(self, inner: WritesRanges, *plan: Fault) -> None:
        super().__init__(inner, *plan)

    @property
    def _files(self) -> WritesRanges:
        """The inner store as it is now: a test may exchange it."""
        assert isinstance(self._inner, WritesRanges)
        return self._inner

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        self._write(
            lambda: self._files.write_parts(key, size_bytes=size_bytes, parts=parts),
            lambda: self._files.write_parts(key, size_bytes=size_bytes, parts=_first_half(parts)),
        )

    def seal(self, keys: Sequence[str]) -> None:
        self._write(lambda: self._files.seal(keys), lambda: self._files.seal(keys[: len(keys) // 2]))

    def move(self, source: str, target: str) -> None:
        inner = self._files
        assert isinstance(inner, MovesObjects)
        self._write(lambda: inner.move(source, target), _nothing)


class FaultyBucket(FaultyObjects):
    """One that takes uploads."""

    def __init__(self, inner: UploadsParts, *plan: Fault) -> None:
        super().__init__(inner, *plan)

    @property
    def _bucket(self) -> UploadsParts:
        """The inner store as it is now: a test may exchange it."""
        assert isinstance(self._inner, UploadsParts)
        return self._inner

    def begin_upload(self, key: str) -> UploadId:
        return self._write(lambda: self._bucket.begin_upload(key), _nothing)

    def upload_part(
        self, key: str, upload_id: UploadId, *, number: int, buffers: Sequence[Buffer], crc: int
    ) -> PartReceipt:
        return self._write(
            lambda: self._bucket.upload_part(key, upload_id, number=number, buffers=buffers, crc=crc), _nothing
        )

    def complete_upload(self, key: str, upload_id: UploadId, *, parts: Sequence[PartReceipt], crc: int) -> None:
        self._write(lambda: self._bucket.complete_upload(key, upload_id, parts=parts, crc=crc), _nothing)

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        self._write(lambda: self._bucket.abort_upload(key, upload_id), _nothing)

    def delete_listed(self, info: ObjectInfo) -> None:
        inner = self._bucket
        assert isinstance(inner, DeletesListed)
        self._write(lambda: inner.delete_listed(info), _nothing)

    def list_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        self._refuse_if_dead()
        return self._bucket.list_uploads(prefix)


def every_death(num_writes: int) -> tuple[Die, ...]:
    """Each way to die at each of the first `num_writes` writes. Raises Invalid for none: a loop over no death would
    prove nothing, whatever it expects."""
    if num_writes < 1:
        raise Invalid(f"every death: expected at least one write to die at, got {num_writes}")
    return tuple(Die(write=write, when=when) for write in range(num_writes) for when in When)


def lost_answer(write: int) -> Fail:
    """Write number `write` is done, and the caller is told that nobody knows."""
    return Fail(write=write, when=When.AFTER, error=Unavailable("connection reset", hint="try again"))


def _nothing() -> None:
    """The half of an atomic write."""


def _first_half(parts: Sequence[Part]) -> list[Part]:
    """The parts up to half of all bytes; the part in which the half ends is torn."""
    views = [[byte_view(buffer, "tear a write") for buffer in part.buffers] for part in parts]
    left_bytes = sum(view.nbytes for part in views for view in part) // 2
    torn = []
    for part, buffers in zip(parts, views, strict=True):
        kept = []
        for view in buffers:
            kept.append(view[:left_bytes])
            left_bytes -= kept[-1].nbytes
        torn.append(Part(offset_bytes=part.offset_bytes, buffers=kept))
    return torn
