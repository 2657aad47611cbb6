"""Time for background copies, which passes by their own pauses alone: however busy the machine, what a rate asks for is
what they sleep."""

from __future__ import annotations


class FakePace:
    """Stands in the place of the module `time` for `behemoth.agent.pace`. `slept`: seconds of each pause."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
