"""The byte layout of a file with one rank's snapshot on its node's own disk, and the encoding of its header. Pure.

Neighbour: `snapshot_files`, which writes and reads such files.

    page 0    header: one line of JSON with its CRC, zeros behind it
    then      CRC-32C of each span, in plan order, from a page boundary on
    then      the data area as it lies in the arena, from a page boundary on
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from behemoth.base.errors import Corrupt
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.arena_format import CRC_BYTES, PAGE_BYTES, whole_pages
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.framing import framed
from behemoth.checkpoint.plan import RankPlan
from behemoth.checkpoint.versioned import decode_versioned

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
NUM_FILES = 2
"""Files of each rank; they are written in turn."""
TABLE_OFFSET = PAGE_BYTES
NO_HEADER = bytes(PAGE_BYTES)
"""The header page of a file that is being filled and holds no snapshot."""
_NAME = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotHeader:
    """`turn` orders the files of one rank: steps may run backwards after a restore. `table_crc` is that of the table
    of the spans' CRCs."""

    format: FormatVersion
    run_uid: RunUid
    rank: int
    step: Step
    write_id: WriteId
    layout_digest: str
    turn: int
    num_spans: int
    data_bytes: int
    table_crc: int

    @staticmethod
    def of(
        plan: RankPlan, *, run_uid: RunUid, step: Step, write_id: WriteId, turn: int, table_crc: int
    ) -> SnapshotHeader:
        """In the format of this release."""
        return SnapshotHeader(
            format=FormatVersion(major=FORMAT_MAJOR, minor=FORMAT_MINOR),
            run_uid=run_uid,
            rank=plan.rank,
            step=step,
            write_id=write_id,
            layout_digest=plan.layout_digest,
            turn=turn,
            num_spans=len(plan.spans),
            data_bytes=plan.data_bytes,
            table_crc=table_crc,
        )

    def encode(self) -> bytes:
        """One page."""
        return framed(msgspec.json.encode(self)).ljust(PAGE_BYTES, b"\0")

    @staticmethod
    def decode(page: bytes) -> SnapshotHeader | None:
        """None for the header of a file that is being filled. Raises Corrupt unless every bit is as written, Invalid
        for a format of a newer release."""
        if page == NO_HEADER:
            return None
        if len(page) != PAGE_BYTES:
            raise Corrupt(f"{_NAME} record: expected a page of {PAGE_BYTES} bytes, got {len(page)}")
        return decode_versioned(page.rstrip(b"\0"), SnapshotHeader, name=_NAME, major=FORMAT_MAJOR)

    def is_of(self, plan: RankPlan, run_uid: RunUid) -> bool:
        """Whether it is a snapshot of this run's rank, in the layout of `plan`."""
        mine = (run_uid, plan.rank, plan.layout_digest, len(plan.spans), plan.data_bytes)
        return mine == (self.run_uid, self.rank, self.layout_digest, self.num_spans, self.data_bytes)


def table_bytes(plan: RankPlan) -> int:
    """Size of the table of the spans' CRCs."""
    return len(plan.spans) * CRC_BYTES


def data_offset(plan: RankPlan) -> int:
    """Where the data area begins."""
    return _data_offset(len(plan.spans))


def file_bytes(plan: RankPlan) -> int:
    """Size of a file for a plan."""
    return snapshot_size_bytes(len(plan.spans), plan.data_bytes)


def snapshot_size_bytes(num_spans: int, data_bytes: int) -> int:
    """As `file_bytes`, from the number of spans and the size of the data alone."""
    return _data_offset(num_spans) + data_bytes


def _data_offset(num_spans: int) -> int:
    return TABLE_OFFSET + whole_pages(num_spans * CRC_BYTES)
