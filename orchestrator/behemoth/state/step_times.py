"""How long steps take, in bounded memory: a log-bucket histogram that yields the p99 of the hang limit.

Whole numbers only, so that a replay gives the same bits on every machine. It must not forget: a hang limit that shrinks
while a run is slow would call slowness a hang. Neighbour: `behemoth.policy.hang`, which turns the p99 into a limit.
"""

from __future__ import annotations

import msgspec
from immutables import Map

_SUB_BITS = 3
"""Eight buckets per doubling: a bucket's upper edge is at most 12.5 % above what fell into it."""


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Counts per bucket of step durations; at most 8 x 64 buckets, about 20 in practice."""

    counts: Map[int, int] = Map()
    num_samples: int = 0
    p99_us: int = 0
    """Upper edge of the bucket that holds the 99th percentile; 0 before the first sample."""

    def with_sample(self, step_us: int) -> StepTimes:
        """A new histogram that has seen `step_us` as well; a value that is not positive is no sample."""
        if step_us <= 0:
            return self
        bucket = _bucket_of(step_us)
        counts = self.counts.set(bucket, self.counts.get(bucket, 0) + 1)
        num_samples = self.num_samples + 1
        return StepTimes(counts=counts, num_samples=num_samples, p99_us=_p99(counts, num_samples))


def _bucket_of(step_us: int) -> int:
    exponent = step_us.bit_length()
    shift = max(0, exponent - 1 - _SUB_BITS)
    return (shift << (_SUB_BITS + 1)) | (step_us >> shift)


def _upper_edge_us(bucket: int) -> int:
    shift = bucket >> (_SUB_BITS + 1)
    mantissa = bucket & ((1 << (_SUB_BITS + 1)) - 1)
    return ((mantissa + 1) << shift) - 1


def _p99(counts: Map[int, int], num_samples: int) -> int:
    above = num_samples // 100
    for bucket in sorted(counts, reverse=True):
        above -= counts[bucket]
        if above < 0:
            return _upper_edge_us(bucket)
    return 0
