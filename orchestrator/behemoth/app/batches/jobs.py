"""Jobs as data (MessagePack): what a worker on another machine needs to open the same stores and run the batches.

Paths are bytes, because the name of a file need not be text. Both ends are of one release, so there is no version.
Neighbours: `verify_job`, `export_job`, `import_job`, `reshard_job`, which know what their batches are.
"""

from __future__ import annotations

from typing import Literal, Protocol, assert_never

import msgspec

from behemoth.app.batches.tensors import TensorChange
from behemoth.base.decoding import UNDECODABLE, told
from behemoth.base.errors import Invalid


class Work(Protocol):
    """A job that was opened in this process. Thread-safe."""

    def run(self, data: bytes) -> bytes:
        """One batch. Idempotent; what it wrote is durable when it returns. Raises Conflict `cancelled` when it has
        given up."""
        ...

    def stop(self) -> None:
        """Ask batches under way to give up; large ones do so soon, on their threads. Does not block."""
        ...

    def close(self) -> None: ...


class VerifyJob(msgspec.Struct, frozen=True, kw_only=True, tag="verify"):
    """Check chunks of one checkpoint against their CRCs."""

    url: bytes
    step: int
    write_id: str
    size_bytes: int


class ExportJob(msgspec.Struct, frozen=True, kw_only=True, tag="export"):
    """Write safetensors files of one checkpoint; each grows below `unfinished` and is then given its name."""

    url: bytes
    step: int
    write_id: str
    size_bytes: int
    to: bytes
    unfinished: str
    change: TensorChange
    max_file_bytes: int
    metadata: list[tuple[str, str]]
    threads: int


class ImportJob(msgspec.Struct, frozen=True, kw_only=True, tag="import"):
    """Write a checkpoint out of foreign files: of `source`, a folder or a prefix, one `file` or, empty, all that belong
    together. `files` are their names, sizes, and etags or times of change. A job without a `write_id` names a record
    and, in part, its writes."""

    source: bytes
    kind: Literal["safetensors", "dcp"]
    file: bytes
    files: list[tuple[bytes, int, str]]
    skips_pickles: bool
    to: bytes
    step: int
    change: TensorChange
    layout_digest: str
    write_id: str = ""


class ReshardJob(msgspec.Struct, frozen=True, kw_only=True, tag="reshard"):
    """Write a checkpoint in another `layout`, encoded, with arrays that come from the first one as `intake`, encoded,
    says. A job without a `new_write_id` only names a record."""

    url: bytes
    step: int
    write_id: str
    size_bytes: int
    to: bytes
    layout: bytes
    intake: bytes
    new_write_id: str = ""


Job = VerifyJob | ExportJob | ImportJob | ReshardJob

_ENCODER = msgspec.msgpack.Encoder(order="sorted")
_DECODER: msgspec.msgpack.Decoder[Job] = msgspec.msgpack.Decoder(Job)


def encode_job(job: Job) -> bytes:
    """The same job gives the same bytes; they name its record."""
    return _ENCODER.encode(job)


def decode_job(data: bytes) -> Job:
    """Raises Invalid for other bytes."""
    try:
        return _DECODER.decode(data)
    except UNDECODABLE as error:
        raise Invalid(f"job: expected one of this release, got: {told(error)}", code="job-format") from error


def open_work(data: bytes) -> Work:
    """Open a job in this process. Raises Invalid for bytes that are not a job, and the errors of its stores."""
    match decode_job(data):
        case VerifyJob() as job:
            from behemoth.app.batches.verify_job import VerifyWork

            return VerifyWork(job)
        case ExportJob() as job:
            from behemoth.app.batches.export_job import ExportWork

            return ExportWork(job)
        case ImportJob() as job:
            from behemoth.app.batches.import_job import open_import

            return open_import(job)
        case ReshardJob() as job:
            from behemoth.app.batches.reshard_job import open_reshard

            return open_reshard(job)
        case _ as other:
            assert_never(other)
