"""CRCs of many wholes at once are those that come of one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint import crc_columns
from behemoth.checkpoint.crc import combine, combined, crc32c
from behemoth.checkpoint.crc_columns import combined_runs, followed

CRC = st.integers(0, 2**32 - 1)
LENGTH = st.one_of(st.integers(1, 300), st.integers(1, 2**40))
PIECE = st.tuples(CRC, LENGTH)


@given(st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=6), max_size=8))
def test_the_crcs_of_many_wholes_follow_from_those_of_their_pieces(wholes: list[list[bytes]]) -> None:
    pieces = [piece for whole in wholes for piece in whole]
    found = combined_runs(
        np.array([crc32c(piece) for piece in pieces], dtype=np.uint32),
        np.array([len(piece) for piece in pieces], dtype=np.int64),
        np.cumsum([0, *map(len, wholes)]),
    )
    assert found.tolist() == [crc32c(b"".join(whole)) for whole in wholes]


@given(st.lists(st.lists(PIECE, min_size=1, max_size=6), min_size=1, max_size=8), st.sampled_from([1, 3, 1 << 15]))
def test_pieces_of_any_length_in_blocks_of_any_size_are_combined_as_one_by_one(
    wholes: list[list[tuple[int, int]]], block_rows: int
) -> None:
    crcs, lengths = zip(*(piece for whole in wholes for piece in whole), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crc_columns, "_BLOCK_ROWS", block_rows)
        found = combined_runs(np.array(crcs, np.uint32), np.array(lengths), np.cumsum([0, *map(len, wholes)]))
    assert found.tolist() == [combined(whole) for whole in wholes]


@given(st.lists(st.tuples(CRC, st.integers(0, 2**62)), min_size=1, max_size=20))
def test_a_piece_adds_what_it_adds_with_zeros_of_no_crc_behind_it(pieces: list[tuple[int, int]]) -> None:
    crcs, behind = zip(*pieces, strict=True)
    found = followed(np.array(crcs, np.uint32), np.array(behind))
    assert found.tolist() == [combine(crc, 0, num_bytes) for crc, num_bytes in pieces]
