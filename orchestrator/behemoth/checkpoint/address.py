"""Where memory lies: direct I/O and large pages want addresses that are multiples of a page."""

from __future__ import annotations

import numpy as np


def address_of(view: memoryview) -> int:
    """Of the view's first byte, in this process, for as long as the view is there."""
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)
