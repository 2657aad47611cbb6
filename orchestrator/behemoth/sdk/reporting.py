"""Reports the progress of a rank to its agent, without ever blocking a step.

When the socket is full, reports are merged until it takes one. The neighbour `run` decides what a step is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import SupportsFloat, SupportsInt, TypeAlias, TypeVar

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.sdk.tensors import Tensor, is_tensor
from behemoth.state.config import WorkPhase
from behemoth.wire.ends import Peer
from behemoth.wire.session import InPhase, Report, ToWorker

Real: TypeAlias = "SupportsFloat | str"
"""What `float` takes: numbers of Python and numpy, tensors without dims."""
Whole: TypeAlias = "SupportsInt | str"

T = TypeVar("T")


def real(what: str, value: Real) -> float:
    """`value` as a float; blocks until a tensor on a device is computed. Raises Invalid naming `what`."""
    try:
        return float(_single(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_number(what, "a number", value) from error


def whole(what: str, value: Whole) -> int:
    """`value` as an int. Raises Invalid naming `what`, also for a number with a fraction, which `int` would cut off."""
    try:
        number = int(_single(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_number(what, "a whole number", value) from error
    if not isinstance(value, str) and number != value:
        raise _no_number(what, "a whole number", value)
    return number


def _single(value: T) -> T | Tensor:
    """`value` without its gradient, which would print a warning. Raises ValueError for a tensor of several elements:
    torch raises a RuntimeError there, as for a broken device."""
    if not is_tensor(value):
        return value
    if value.numel() != 1:
        raise ValueError("a tensor of several elements")
    return value.detach()


def _no_number(what: str, expected: str, value: object) -> Invalid:
    return Invalid(
        f"{what}: expected {expected}, got {type(value).__name__} {str(value)[:80]}",
        hint="give one number: reduce arrays and tensors of several elements first",
        code="report-number",
    )


class Reporter:
    """One per rank; used by the program's thread only. `limit_s` bounds each wait for the agent."""

    def __init__(self, peer: Peer[ToWorker], *, limit_s: float, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._peer = peer
        self._limit_s = limit_s
        self._now_ns = now_ns
        self._pending: Report | None = None
        self._began_ns = now_ns()
        self._reported = Step(-1)
        self._phase: WorkPhase = "restore"  # as the agent takes it once the rank has joined
        self._blocks: list[WorkPhase] = []

    def begin_step(self) -> None:
        """Start the clock of the next step now: the time since the last report counts for no step."""
        self._began_ns = self._now_ns()

    def report(self, step: Step, *, loss: float | None, tokens: int) -> None:
        """`step` is completed, and the next one begins. Never blocks. A second report of the same step adds its tokens
        and its loss."""
        took_us = 0
        if step != self._reported:
            took_us = (self._now_ns() - self._began_ns) // 1000
            self.begin_step()
        if self._phase == "first_step":
            self._phase = "step"  # as the agent takes it
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

    def enter(self, phase: WorkPhase) -> None:
        """Tell the agent the phase that the rank is in from now on; the next step begins now."""
        self._phase = phase
        self.begin_step()
        self._tell(phase)

    @contextmanager
    def within(self, phase: WorkPhase) -> Iterator[None]:
        """Be in `phase` during the block, and in the former phase after it. Blocks nest; their time does not count for
        the step, since another hang limit applies to it."""
        entered_ns = self._now_ns()
        self._blocks.append(phase)
        self._tell(phase)
        try:
            yield
        finally:
            self._blocks.pop()
            if not self._blocks:
                self._began_ns += self._now_ns() - max(self._began_ns, entered_ns)
            self._tell(self._blocks[-1] if self._blocks else self._phase)

    def _tell(self, phase: WorkPhase) -> None:
        """Blocks, for at most `limit_s`: a report that is still pending is sent first."""
        if self._pending is not None:
            self._peer.send(self._pending, timeout_s=self._limit_s)
            self._pending = None
        self._peer.send(InPhase(phase=phase), timeout_s=self._limit_s)
