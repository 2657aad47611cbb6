"""A cache of the largest magnitudes of blocks, from which scales are computed.

A job that converts an array in several passes must search each block only once: a block may be larger than what one
pass reads, and its scale is written apart from its values. Neighbours: `scaled_reader`, which looks, `changes`, which
says what scales are, and `caching`, the same for scales that were saved."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import numpy as np

from behemoth.checkpoint.box import Box, slices_of
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import num_blocks
from behemoth.checkpoint.precision import Floats

_UNKNOWN = np.float32(-1)
_ITEM_BYTES = 4


class ComputedScales:
    """Largest magnitudes of blocks, float32, for the arrays that were asked for last; at most `limit_bytes`.
    Thread-safe. What was dropped is computed again."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[Scales, Floats] = OrderedDict()  # the longest not asked for first
        self._held_bytes = 0

    def find(self, scales: Scales, box: Box) -> Floats | None:
        """The magnitudes of a box of blocks, as a copy in the shape of the box; None unless all of them are known."""
        with self._lock:
            known = self._known.get(scales)
            if known is None:
                return None
            self._known.move_to_end(scales)
            found = known[slices_of(box)].copy()
        return None if (found == _UNKNOWN).any() else found

    def learn(self, scales: Scales, shape: tuple[int, ...], box: Box, largest: Floats) -> None:
        """Keep the magnitudes of a box of blocks that have been searched completely. `shape` is the array's."""
        with self._lock:
            if scales not in self._known:
                grid = num_blocks(shape, scales.block)
                num_bytes = math.prod(grid) * _ITEM_BYTES
                if num_bytes > self._limit_bytes:
                    return
                self._known[scales] = np.full(grid, _UNKNOWN, dtype=np.float32)
                self._held_bytes += num_bytes
            self._known[scales][slices_of(box)] = largest
            self._known.move_to_end(scales)
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= self._known.popitem(last=False)[1].nbytes
