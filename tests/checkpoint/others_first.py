"""A store that gives one object last of several: who reads them one behind the other waits in vain."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from behemoth.base.errors import BehemothError
from behemoth.ports import Into
from behemoth.testing.store import MemoryStore
from checkpoint.unread_store import Unread


class OthersFirst(Unread):
    """Gives the object `key` when `num_others` others were read, or had their errors. Counts reads that were begun."""

    def __init__(
        self, inner: MemoryStore, key: str, *, num_others: int, errors: Mapping[str, BehemothError] | None = None
    ) -> None:
        super().__init__(inner, dict(errors or {}))
        self.num_begun = 0
        self._key, self._num_left = key, num_others
        self._counting, self._others = threading.Lock(), threading.Event()

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        with self._counting:
            self.num_begun += 1
        if key == self._key:
            assert self._others.wait(60)
        try:
            super().read_into(key, offset_bytes=offset_bytes, into=into)
        finally:
            with self._counting:
                self._num_left -= key != self._key
                if self._num_left <= 0:
                    self._others.set()
