"""Proves from receipts alone that a write is complete and not all-zero; each kind of failure has an error of its own.

Pure: reads no storage, so that a refusal leaves nothing behind. The silent failures that it exists for: bytes that
nobody wrote, zeros instead of data (Megatron-LM #5077). Neighbours: `commit`, `coverage`, and `freshness` for the
third, stale bytes saved as new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from behemoth.base.errors import Conflict, Corrupt, Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_ends import chunk_spans
from behemoth.checkpoint.chunk_sums import ChunkSums, chunk_sums
from behemoth.checkpoint.chunk_tails import payload_crc
from behemoth.checkpoint.commit_record import ArraySummary, CommitRecord
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.crc_columns import Crcs
from behemoth.checkpoint.end_proof import NO_ENDS_LEFT, Chunks, ends_left
from behemoth.checkpoint.freshness import held_prints
from behemoth.checkpoint.grid import Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.span_table import SpanTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What follows from the receipts of all ranks."""

    arrays: tuple[ArraySummary, ...]
    left: Chunks
    """The chunks in files behind which no rank has written the CRC."""
    chunk_crcs: tuple[Crcs, ...]
    """For each array [chunks]: the CRC-32C of each chunk's payload."""
    first_ranks: tuple[Rank, ...]
    """For each array the rank that wrote its first byte."""
    held_prints: str | msgspec.UnsetType


def prove(
    candidate: Candidate, layout: Layout, receipts: Sequence[Receipt], *, are_files: bool = True, threads: int = 1
) -> Proof:
    """One receipt of each rank, all of this write, covering every byte exactly once. Objects that are uploaded have the
    CRCs behind their chunks in them; only with `are_files` are those of several ranks compared, or left. `threads` are
    worth their start where there are millions of spans, so the default is the caller's own; the result is the same.

    Raises Conflict for another write or attempt, Invalid for another layout or coverage that is not exact, Corrupt for
    a wrong CRC behind a chunk; each names the rank, and the array where there is one.
    """
    by_rank = _one_each(candidate, layout, receipts)
    tables = [SpanTable.of(receipt.spans) for receipt in by_rank]
    rows_of_ranks = np.cumsum([0, *map(len, tables)])
    sums = chunk_sums(layout, tables, threads=threads)
    if sums is None:
        raise _not_covered(candidate, layout, by_rank, rows_of_ranks)
    chunk_crcs = _payload_crcs(layout, sums)
    first_ranks = np.searchsorted(rows_of_ranks, sums.first_row[sums.first_chunk[:-1]], side="right") - 1
    return Proof(
        arrays=tuple(
            ArraySummary(name=spec.name, content_crc=crc32c(crcs.astype("<u4").tobytes()), is_zero=is_zero)
            for spec, crcs, is_zero in zip(layout.arrays, chunk_crcs, sums.are_zero.tolist(), strict=True)
        ),
        left=ends_left(layout, by_rank, rows_of_ranks, sums) if are_files else NO_ENDS_LEFT,
        chunk_crcs=chunk_crcs,
        first_ranks=tuple(map(Rank, first_ranks.tolist())),
        held_prints=held_prints(layout, by_rank),
    )


def _not_covered(
    candidate: Candidate, layout: Layout, by_rank: Sequence[Receipt], rows_of_ranks: Ints
) -> Invalid | Internal:
    """Says what is wrong with spans that do not cover every byte exactly once."""
    spans = SpanTable.joined([SpanTable.of(receipt.spans) for receipt in by_rank])
    array, chunk, offset, length, *_ = (column.astype(np.int64) for column in spans)  # beyond int64: negative, refused
    fault = check_coverage(layout, Extents(array=array, chunk=chunk, offset=offset, length=length))
    if fault is None:
        return Internal(f"{_named(candidate)}: expected to find what its spans do not cover exactly once, got nothing")
    is_told = fault.row >= 0
    rank = _rank_of(fault.row, rows_of_ranks) if is_told else _owing(layout, by_rank, fault.array, fault.chunk)
    told = "" if rank is None else f"rank {rank}: "
    return Invalid(f"{_named(candidate)}: {told}{fault.message}", code=fault.code)


def _rank_of(row: int, rows_of_ranks: Ints) -> Rank:
    """The rank whose receipt holds this row of all receipts, one after another."""
    return Rank(int(np.searchsorted(rows_of_ranks, row, side="right")) - 1)


def _owing(layout: Layout, by_rank: Sequence[Receipt], array: int, chunk: int) -> Rank | None:
    """The rank that owed bytes of a chunk which no receipt covers."""
    for rank, *span in chunk_spans(layout, array, chunk):
        if not any(told[:4] == tuple(span) for told in by_rank[rank].spans):
            return rank
    return None


def check_zeros(layout: Layout, proof: Proof, previous: CommitRecord) -> None:
    """Raises Corrupt for an array that became all zero without being declared `may_be_zero`."""
    before = {array.name: array.is_zero for array in previous.arrays}
    for spec, array, rank in zip(layout.arrays, proof.arrays, proof.first_ranks, strict=True):
        if array.is_zero and not before.get(array.name, True) and not spec.may_be_zero:
            raise Corrupt(
                f"array {array.name!r}, first byte from rank {rank}: expected elements other than zero, as at step "
                f"{previous.step}, got all {spec.num_elements} zero",
                hint="declare it may_be_zero if that is healthy",
                code="array-zero",
            )


def _one_each(candidate: Candidate, layout: Layout, receipts: Sequence[Receipt]) -> list[Receipt]:
    by_rank: dict[int, Receipt] = {}
    for receipt in receipts:
        _check_receipt(candidate, layout, receipt)
        if by_rank.setdefault(receipt.rank, receipt) != receipt:
            raise Conflict(f"rank {receipt.rank}: expected one receipt, got two that differ", code="receipt-twice")
    missing = [rank for rank in range(layout.mesh.num_ranks) if rank not in by_rank]
    if missing:
        raise Invalid(
            f"{_named(candidate)}: expected {layout.mesh.num_ranks} receipts, got none of rank "
            f"{', '.join(map(str, missing[:8]))}{' ..' if len(missing) > 8 else ''}",
            code="receipt-missing",
        )
    return [by_rank[rank] for rank in sorted(by_rank)]


def _named(candidate: Candidate) -> str:
    return f"write {candidate.write_id!r} of step {candidate.step}"


def _check_receipt(candidate: Candidate, layout: Layout, receipt: Receipt) -> None:
    if receipt.rank >= layout.mesh.num_ranks:
        raise Invalid(
            f"receipt: expected a rank below {layout.mesh.num_ranks}, got {receipt.rank}", code="receipt-rank"
        )
    if receipt.layout_digest != layout.digest:
        raise Invalid(
            f"rank {receipt.rank}: expected layout {layout.digest[:12]}, got {receipt.layout_digest[:12]}",
            hint="ranks disagree on arrays or mesh",
            code="receipt-layout",
        )
    for what, expected, got in (
        ("attempt", candidate.attempt, receipt.attempt),
        ("write id", candidate.write_id, receipt.write_id),
        ("step", candidate.step, receipt.step),
    ):
        if expected != got:
            raise Conflict(
                f"rank {receipt.rank}: expected a receipt of {what} {expected!r}, got {got!r}", code="receipt-stale"
            )


def _payload_crcs(layout: Layout, sums: ChunkSums) -> tuple[Crcs, ...]:
    """For each array, of each chunk, padding included."""
    crcs, of_arrays = sums.data_crc.copy(), grids(layout)
    payload_bytes = np.repeat([grid.payload_bytes for grid in of_arrays], np.diff(sums.first_chunk))
    padded = np.flatnonzero(sums.data_bytes < payload_bytes)
    for chunk, array in zip(padded.tolist(), sums.places(padded)[0].tolist(), strict=True):
        crcs[chunk] = payload_crc(of_arrays[array], int(crcs[chunk]), int(sums.data_bytes[chunk]))
    return tuple(crcs[low:high] for low, high in pairwise(sums.first_chunk.tolist()))
