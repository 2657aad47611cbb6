"""Whether a save of torch's is still going on, as far as its coordinator can know.

When a rank fails while it writes, DCP raises on all ranks, but it tells their writers nothing: `finish` is not called,
and no other method is. What tells is the stack of the thread in which DCP asked for the plan: the save goes on for as
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
class GoingOn:
    """A save that is planned in `thread`. `frame` and `code` are those of torch's function, None where it was called by
    another program: then it may go on for as long as the thread lives. No reference to the frame is kept, since that
    would keep the state dict; another call at its place in memory only makes the save seem to go on."""

    thread: int
    frame: int | None
    code: CodeType | None

    @staticmethod
    def here() -> GoingOn:
        """Of the save that has called this."""
        found = None
        for frame in _stack(threading.get_ident()):
            if frame.f_globals.get("__name__") == _TORCH_SAVES:
                found = frame
        thread = threading.get_ident()
        return GoingOn(thread, None, None) if found is None else GoingOn(thread, id(found), found.f_code)

    @property
    def is_told(self) -> bool:
        """Whether its end can be told from that of its thread."""
        return self.frame is not None

    def is_over(self) -> bool:
        stack = list(_stack(self.thread))
        return not stack or (self.is_told and all((id(one), one.f_code) != (self.frame, self.code) for one in stack))


def _stack(thread: int) -> Iterator[FrameType]:
    """The innermost frame first; nothing of a thread that has ended."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        yield frame
        frame = frame.f_back
