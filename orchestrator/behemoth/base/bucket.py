"""A token bucket: how long to wait so that work keeps to a rate. Pure: time is an argument.

Neighbour: `checkpoint.pacing`, which waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from behemoth.base.errors import Invalid


@dataclass(slots=True, kw_only=True)
class TokenBucket:
    """At most `rate_per_s` tokens a second over any span, and `burst` more at its beginning. It starts full.

    A caller may take more than there is: the bucket goes into debt, and the caller waits until it is paid. So one
    request may be larger than the burst. Not thread-safe.
    """

    rate_per_s: float
    burst: float
    _tokens: float = 0.0
    _told_s: float | None = None

    def __post_init__(self) -> None:
        if not self.rate_per_s > 0 or not self.burst >= 0:
            raise Invalid(f"rate: expected > 0 a second and a burst >= 0, got {self.rate_per_s} and {self.burst}")
        self._tokens = self.burst

    def take(self, tokens: float, *, now_s: float) -> float:
        """Take tokens; the seconds to wait before using them. `now_s` is monotonic; a clock that runs backwards adds no
        tokens."""
        elapsed_s = max(0.0, now_s - self._told_s) if self._told_s is not None else 0.0
        self._told_s = now_s if self._told_s is None else max(now_s, self._told_s)
        self._tokens = min(self.burst, self._tokens + elapsed_s * self.rate_per_s) - tokens
        return max(0.0, -self._tokens / self.rate_per_s)
