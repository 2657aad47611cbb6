"""The process of a batch worker that can read DCP checkpoints: `python -m behemoth.dcp.batch_worker`.

One of its own, because torch takes a second and 200 MB to load, which other jobs need not. Neighbour:
`wiring.batch_worker`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from behemoth.app.batches.import_job import open_import
from behemoth.app.batches.jobs import ImportJob, Work, decode_job, open_work
from behemoth.app.batches.worker import serve, take_settings
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.dcp.foreign import read_dcp
from behemoth.ports import ObjectStore


def main() -> int:
    """The exit status: 0 when the executor has closed the connection."""
    serve(take_settings(os.environ), open_work=_open)
    return 0


def _open(data: bytes) -> Work:
    job = decode_job(data)
    if isinstance(job, ImportJob) and job.kind == "dcp":
        return open_import(job, _read)
    return open_work(data)


def _read(store: ObjectStore, job: ImportJob) -> Mapping[str, Tensor]:
    return read_dcp(store, threads=1, skips_pickles=job.skips_pickles).tensors


if __name__ == "__main__":
    sys.exit(main())
