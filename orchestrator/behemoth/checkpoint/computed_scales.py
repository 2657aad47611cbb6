"""What has been computed for scales, remembered from one reading of an array to the next.

Who converts an array in several goes looks through each block once: a block may have more than one go takes, and its
scale is written apart from its values. Neighbours: `scaled_reader`, which looks, `changes`, which says what scales are,
and `caching`, the same for scales that were saved.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import numpy as np

from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import num_blocks
from behemoth.checkpoint.precision import Floats

_UNKNOWN = np.float32(-1)
_ITEM_BYTES = 4


class ComputedScales:
    """The largest magnitudes of blocks, of the arrays that were asked for last, in `limit_bytes` at most. Thread-safe.
    What is forgotten is looked for again."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[Scales, Floats] = OrderedDict()  # the longest not asked for first
        self._held_bytes = 0

    def find(self, scales: Scales, box: Box) -> Floats | None:
        """Those of a box of blocks, a copy; None unless all of them are known."""
        with self._lock:
            known = self._known.get(scales)
            if known is None:
                return None
            self._known.move_to_end(scales)
            found = known[_slices(box)].copy()
        return None if (found == _UNKNOWN).any() else found

    def learn(self, scales: Scales, shape: tuple[int, ...], box: Box, largest: Floats) -> None:
        """Remember those of a box of blocks, which have been looked through, of an array of this shape."""
        with self._lock:
            if scales not in self._known:
                grid = num_blocks(shape, scales.block)
                num_bytes = math.prod(grid) * _ITEM_BYTES
                if num_bytes > self._limit_bytes:
                    return
                self._known[scales] = np.full(grid, _UNKNOWN, dtype=np.float32)
                self._held_bytes += num_bytes
            self._known[scales][_slices(box)] = largest
            self._known.move_to_end(scales)
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= self._known.popitem(last=False)[1].nbytes


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)
