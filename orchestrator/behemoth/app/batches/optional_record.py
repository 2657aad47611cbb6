"""A record whose loss is no error: where it cannot be written the job goes on without it, and says why.

Hours of reading must not fail because a home folder is full. What was recorded until then still counts for the next
call. Neighbour: `record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from behemoth.app.batches.record import Record, RecordFile, Unrecorded, recorded
from behemoth.base.errors import Denied, Unavailable
from behemoth.ports import Batch


class OptionalRecord:
    """A `Record` that takes no more once its file does not. `tell` is told why, once."""

    def __init__(self, file: RecordFile, tell: Callable[[str], None]) -> None:
        self._file = file
        self._tell = tell
        self.is_kept = True

    @property
    def note(self) -> str:
        return self._file.note

    def done(self) -> dict[int, Batch]:
        return self._file.done()

    def add(self, result: Batch) -> None:
        if self.is_kept:
            self._try(lambda: self._file.add(result))

    def forget(self, note: str) -> None:
        self._try(lambda: self._file.forget(note))

    def _try(self, keep: Callable[[], None]) -> None:
        try:
            keep()
        except Unavailable as error:
            self.is_kept = False
            self._tell(error.message)


@contextmanager
def recorded_if_possible(
    folder: Path, *, verb: str, job: bytes, note: str, anew: bool, tell: Callable[[str], None]
) -> Iterator[Record]:
    """As `recorded`, but a folder that cannot be written is told and no error. Raises Conflict while another process
    does the same job."""
    with ExitStack() as stack:
        record: Record
        try:
            file = stack.enter_context(recorded(folder, verb=verb, job=job, note=note, anew=anew))
            record = OptionalRecord(file, tell)
        except (Denied, Unavailable) as error:
            tell(error.message)
            record = Unrecorded(note)
        yield record
