"""A store that breaks at a chosen write: dies before, in the middle of or after it, or gives a wrong answer once.

What it does depends on the plan only, never on time or chance: a test runs once without faults, reads `num_writes`,
and then breaks each of them in turn. Must not repair anything. The neighbour is `store`, whose suite it passes when
the plan is empty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Unavailable
from behemoth.ports import MovesObjects, ObjectInfo, ObjectStore, Part
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
    `create` and `move` are atomic and have done nothing."""

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


class FaultyStore:
    """Passes calls on to `inner`, and breaks as `plan` says. Writes are counted in the order in which they begin."""

    def __init__(self, inner: ObjectStore, *plan: Fault) -> None:
        self._inner = inner
        self._plan = {fault.write: fault for fault in plan}
        self._num_writes = 0
        self._is_dead = False
        self._lock = threading.Lock()

    @property
    def num_writes(self) -> int:
        """How many writes (`write_parts`, `seal`, `create`, `move`, `delete`) have begun."""
        return self._num_writes

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        self._write(
            lambda: self._inner.write_parts(key, size_bytes=size_bytes, parts=parts),
            lambda: self._inner.write_parts(key, size_bytes=size_bytes, parts=_first_half(parts)),
        )

    def seal(self, keys: Sequence[str]) -> None:
        self._write(lambda: self._inner.seal(keys), lambda: self._inner.seal(keys[: len(keys) // 2]))

    def create(self, key: str, data: Buffer) -> None:
        self._write(lambda: self._inner.create(key, data), lambda: None)

    def delete(self, keys: Sequence[str]) -> None:
        self._write(lambda: self._inner.delete(keys), lambda: self._inner.delete(keys[: len(keys) // 2]))

    def move(self, source: str, target: str) -> None:
        """As `create`, atomic. The inner store must be able to."""
        assert isinstance(self._inner, MovesObjects)
        inner = self._inner
        self._write(lambda: inner.move(source, target), lambda: None)

    def read_into(self, key: str, *, offset_bytes: int, into: Buffer) -> None:
        self._refuse_if_dead()
        self._inner.read_into(key, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._refuse_if_dead()
        return self._inner.list(prefix)

    def _write(self, whole: Callable[[], None], half: Callable[[], None]) -> None:
        fault = self._next_fault()
        if fault is None:
            whole()
            return
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


def every_death(num_writes: int) -> tuple[Die, ...]:
    """Each way to die at each of the first `num_writes` writes."""
    return tuple(Die(write=write, when=when) for write in range(num_writes) for when in When)


def lost_answer(write: int) -> Fail:
    """Write number `write` is done, and the caller is told that nobody knows."""
    return Fail(write=write, when=When.AFTER, error=Unavailable("connection reset", hint="try again"))


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
