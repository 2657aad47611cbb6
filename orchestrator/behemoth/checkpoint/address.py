"""The address of memory: direct I/O and large pages need addresses that are multiples of a page."""

from __future__ import annotations

import numpy as np


def address_of(view: memoryview) -> int:
    """Address of the view's first byte in this process; valid for as long as the view exists."""
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)
