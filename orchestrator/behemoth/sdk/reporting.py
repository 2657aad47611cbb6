"""How far the rank is, told to its agent without ever holding up a step.

When the socket is full, reports are merged until it takes one. The neighbour `run` decides what a step is.
"""

from __future__ import annotations

import time

from behemoth.base.ids import Step
from behemoth.state.config import WorkPhase
from behemoth.wire.session import InPhase, Peer, Report, ToWorker


class Reporter:
    """One per rank; used by the program's thread only."""

    def __init__(self, peer: Peer[ToWorker]) -> None:
        self._peer = peer
        self._pending: Report | None = None
        self._began_ns = time.monotonic_ns()
        self._reported = Step(-1)

    def begin_step(self) -> None:
        self._began_ns = time.monotonic_ns()

    def report(self, step: Step, *, loss: float | None, tokens: int) -> None:
        """`step` is completed. Never blocks. The same step again only adds what was not told."""
        took_us = (time.monotonic_ns() - self._began_ns) // 1000 if step != self._reported else 0
        former = self._pending
        self._reported = step
        self._pending = Report(
            step=step,
            slowest_step_us=max(took_us, former.slowest_step_us if former is not None else 0),
            tokens=tokens + (former.tokens if former is not None else 0),
            loss=loss if loss is not None or former is None else former.loss,
        )
        self.flush()

    def has_reported(self, step: Step) -> bool:
        return self._reported >= step

    def flush(self) -> None:
        """Send what is pending if the socket takes it now."""
        if self._pending is not None and self._peer.try_send(self._pending):
            self._pending = None

    def enter(self, phase: WorkPhase, *, timeout_s: float) -> None:
        """What the rank does from now on; reports that wait go first."""
        if self._pending is not None:
            self._peer.send(self._pending, timeout_s=timeout_s)
            self._pending = None
        self._peer.send(InPhase(phase=phase), timeout_s=timeout_s)
