"""Jobs as data: what a worker on another machine needs to open the same stores and do the same to them.

Both ends come from one release, so there is no version. Neighbours: one file for each job knows what its batches are.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from behemoth.base.errors import Invalid


class Work(Protocol):
    """A job that was opened in this process. Thread-safe."""

    def run(self, data: bytes) -> bytes:
        """One batch. Idempotent; what it wrote is durable when it returns."""
        ...

    def close(self) -> None: ...


class VerifyJob(msgspec.Struct, frozen=True, kw_only=True, tag="verify"):
    """Check chunks of one checkpoint against their CRCs, or, not deep, read the CRCs alone."""

    url: str
    step: int
    write_id: str
    size_bytes: int
    deep: bool


Job = VerifyJob

_ENCODER = msgspec.msgpack.Encoder(order="sorted")
_DECODER = msgspec.msgpack.Decoder(Job)


def encode_job(job: Job) -> bytes:
    """The same job gives the same bytes; they name its record."""
    return _ENCODER.encode(job)


def open_work(data: bytes) -> Work:
    """Open a job in this process. Raises Invalid for what is no job, and what its stores raise."""
    try:
        job = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise Invalid(f"job: expected one of this release, got {error}", code="job-format") from error
    from behemoth.app.batches.verify_job import VerifyWork

    return VerifyWork(job)
