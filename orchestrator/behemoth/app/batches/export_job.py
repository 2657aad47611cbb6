"""An export in batches: a file each, written whole or not at all, so that the target itself tells what is done.

Neighbours: `checkpoint.interop.export`, which plans files and writes them, and `driving`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

from behemoth.app.batches.driving import Progress, Sized, run_job
from behemoth.app.batches.jobs import ExportJob, encode_job
from behemoth.app.batches.record import Unrecorded
from behemoth.app.batches.tensors import outward
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.interop.export import write_file
from behemoth.checkpoint.interop.export_plan import ExportPlan, FilePlan, plan_export
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.stopping import require_wanted
from behemoth.ports import Batch, Executor
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store


class ExportWork:
    """A `Work`: checkpoint, target and plan, opened once."""

    def __init__(self, job: ExportJob) -> None:
        ref = CommitRef(step=Step(job.step), write_id=WriteId(job.write_id), size_bytes=job.size_bytes)
        self._store, self._target = open_store(os.fsdecode(job.url)), open_store(os.fsdecode(job.to))
        self._unfinished = job.unfinished
        self._stopped = threading.Event()
        tensors = stored_tensors(self._store, open_commit(self._store, ref), threads=job.threads)
        plan = plan_export(outward(tensors, job.change), max_file_bytes=job.max_file_bytes, metadata=dict(job.metadata))
        self._files = {file.name: file for file in plan.files}

    def run(self, data: bytes) -> bytes:
        name = data.decode()
        for _ in write_file(self._target, self._unfinished, self._files[name]):
            require_wanted(self._stopped.is_set, what=f"export of {name}")
        return b""

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._store.close()
        self._target.close()


def write_in_batches(
    executor: Executor, job: ExportJob, plan: ExportPlan, *, progress: Progress
) -> Callable[[Sequence[FilePlan]], Iterator[str]]:
    """A `spread` for `export`: writes files in batches, and yields the name of each that is complete. `progress` counts
    files that an earlier export completed as done."""
    numbers = {file.name: number for number, file in enumerate(plan.files)}
    names = [file.name for file in plan.files]

    def spread(files: Sequence[FilePlan]) -> Iterator[str]:
        kept_bytes = plan.size_bytes - sum(file.size_bytes for file in files)
        batches = [
            Sized(batch=Batch(number=numbers[file.name], data=file.name.encode()), num_bytes=file.size_bytes)
            for file in files
        ]

        def with_kept(done_bytes: int, total_bytes: int) -> None:
            progress(kept_bytes + done_bytes, kept_bytes + total_bytes)

        for result in run_job(executor, encode_job(job), batches, Unrecorded(), progress=with_kept):
            yield names[result.number]

    return spread
