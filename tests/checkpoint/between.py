"""A store in which another process acts between two writes of the one that is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from behemoth.ports import WritesRanges
from behemoth.testing.faults import FaultyStore

_T = TypeVar("_T")


class Between(FaultyStore):
    """Does something else just before or after the write of this number: what another process does meanwhile."""

    def __init__(self, inner: WritesRanges, number: int, meanwhile: Callable[[], object], *, is_after: bool) -> None:
        super().__init__(inner)
        self._number = number
        self._meanwhile = meanwhile
        self._is_after = is_after

    def _write(self, whole: Callable[[], _T], half: Callable[[], object]) -> _T:
        is_now = self.num_writes == self._number
        if is_now and not self._is_after:
            self._meanwhile()
        done = super()._write(whole, half)
        if is_now and self._is_after:
            self._meanwhile()
        return done
