"""The call of torch's save function in which DCP asked for a plan: whether it has returned, as far as can be known.

When a rank fails while it writes, DCP raises on all ranks, but it tells their writers nothing: neither `finish` nor any
other method is called. So the stack of the thread in which DCP asked for the plan is examined: the save goes on for as
long as torch's function is on it. Neighbours: `save_lock` and `writer`, which ask.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType

_TORCH_SAVES = "torch.distributed.checkpoint.state_dict_saver"
"""The module of torch whose functions return, or raise, when a save ends."""


@dataclass(frozen=True, slots=True)
class SaveCall:
    """A save that is planned in `thread` (its ident). `frame` is the id() of the frame of torch's function, `code` its
    code; None where the writer is not called by torch: then the save may go on for as long as the thread lives. No
    reference to the frame is kept, since that would keep the state dict alive; if another frame gets the same address,
    the save only seems to go on for longer."""

    thread: int
    frame: int | None
    code: CodeType | None

    @staticmethod
    def here() -> SaveCall:
        """The save on the stack of the calling thread."""
        found = None
        for frame in _stack(threading.get_ident()):
            if frame.f_globals.get("__name__") == _TORCH_SAVES:
                found = frame
        thread = threading.get_ident()
        return SaveCall(thread, None, None) if found is None else SaveCall(thread, id(found), found.f_code)

    @property
    def is_found(self) -> bool:
        """Whether torch's function was found, so that its end is seen before that of the thread."""
        return self.frame is not None

    def is_over(self) -> bool:
        """Whether the function has returned or raised, or its thread has ended."""
        stack = list(_stack(self.thread))
        return not stack or (self.is_found and all((id(one), one.f_code) != (self.frame, self.code) for one in stack))


def _stack(thread: int) -> Iterator[FrameType]:
    """Frames of a thread, the innermost first; none when it has ended."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
