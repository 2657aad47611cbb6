"""The other ranks of a giant run, as the checkpoint benchmark plays them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from contenders.others import write_chunk_ends, zero_filled_crc

from behemoth.base.ids import Rank
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.ports import Part
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore

LAYOUT = Layout(mesh=Mesh(dp=3, edp=3), arrays=(ArraySpec(name="w", dtype="uint8", shape=(1000,), flat_over="dp"),))


def test_a_chunk_of_one_ranks_part_is_whole_with_zeros_elsewhere(tmp_path: Path) -> None:
    store, (grid,) = LocalStore(tmp_path), grids(LAYOUT)
    (span,) = plan_rank(LAYOUT, Rank(1)).spans
    mine = np.arange(span.length, dtype=np.uint8).tobytes()
    key = f"steps/{LAYOUT.paths[0]}/{grid.shard_key(0)}"
    store.write_parts(key, size_bytes=grid.file_bytes, parts=[Part(offset_bytes=span.shard_offset, buffers=[mine])])
    write_chunk_ends(store, "steps", LAYOUT, [(span, crc32c(mine))])
    data = (tmp_path / key).read_bytes()
    payload = data[: grid.payload_bytes]
    assert payload[span.offset : span.offset + span.length] == mine
    assert data[grid.payload_bytes : grid.payload_bytes + 4] == crc32c(payload).to_bytes(4, "little")
    store.close()


def test_spans_of_others_count_as_zeros() -> None:
    owned, other = (plan_rank(LAYOUT, Rank(rank)).spans[0] for rank in (0, 1))
    mine = bytes([7]) * owned.length
    expected = crc32c(mine + bytes(1000 - owned.length))
    assert zero_filled_crc([(owned, crc32c(mine)), (other._replace(is_owned=False), 99)], 1000) == expected
