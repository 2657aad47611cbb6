"""Objects of a bucket from boxes of any cut: every byte right and sent once; by one rank alone where cuts are even."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid, Unavailable
from behemoth.base.ids import UploadId
from behemoth.checkpoint.box import Box, Interval
from behemoth.checkpoint.crc import crc32c, trailer
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.local_boxes import share_of
from behemoth.dcp import bucket_writer, object_parts
from behemoth.dcp.box_shards import box_spec
from behemoth.dcp.box_writer import PlacedBox
from behemoth.dcp.boxes import mesh_of
from behemoth.dcp.bucket_borders import begin_shared, complete_shared
from behemoth.dcp.bucket_writer import upload_boxes
from behemoth.dcp.object_parts import parts_of
from behemoth.dcp.orders import PlacedArray, SentObjects, ShardName
from behemoth.dcp.tensors import Tensors
from behemoth.ports import MAX_PARTS, Into, PartReceipt
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import read
from checkpoint.interop.rewriting import small_parts
from checkpoint.random_layouts import small_chunks
from dcp.cuts import partitions

Ranks = Sequence[Sequence[Box]]


def placed_of(shape: tuple[int, ...], ranks: Ranks) -> Mapping[str, PlacedArray]:
    spec = box_spec("a", "float32", shape, [box for boxes in ranks for box in boxes], num_ranks=len(ranks))
    (grid,) = grids(Layout(mesh=mesh_of(len(ranks)), arrays=(spec,), sharding="box"))
    return {"a": PlacedArray(grid=grid, folder="steps/a")}


def logical(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(1, 1 + math.prod(shape), dtype="<f4").reshape(shape)


def upload(
    bucket: MemoryBucket, placed: PlacedArray, rank: int, boxes: Sequence[Box], begun: Mapping[ShardName, UploadId]
) -> SentObjects:
    whole = logical(placed.grid.spec.shape)
    local = [np.array(whole[tuple(slice(*part) for part in box)]) for box in boxes]  # never a scalar
    tensors = Tensors(lambda number: torch.from_numpy(local[number]))
    _, sent = upload_boxes(
        bucket,
        [PlacedBox(placed, box) for box in boxes],
        tensors,
        begun=begun,
        pieces_key=f"pieces/{rank}",
        threads=1,
    )
    return sent


def expected_object(grid: Grid, shard: int) -> bytes:
    whole, data = logical(grid.spec.shape), b""
    for chunk in grid.chunks_of(shard).tolist():
        payload = whole[grid.chunk_box(chunk)].tobytes().ljust(grid.payload_bytes, b"\0")
        data += payload + trailer(crc32c(payload)) + bytes(grid.gap_bytes)
    return data + grid.index()


@given(partitions(), st.integers(1, 4), st.integers(8, 200), st.integers(8, 400), st.data())
def test_ranks_and_their_coordinator_make_every_object_right_and_once(
    cut: tuple[tuple[int, ...], list[Box]], num_ranks: int, chunk_bytes: int, part_bytes: int, data: st.DataObject
) -> None:
    shape, boxes = cut
    ranks: list[list[Box]] = [[] for _ in range(num_ranks)]
    for box in boxes:
        ranks[data.draw(st.integers(0, num_ranks - 1))].append(box)
    bucket = MemoryBucket(min_part_bytes=1)
    with (
        small_chunks(chunk_bytes, poor_bytes=max(1, chunk_bytes // 8)),
        small_parts(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(object_parts, "PART_BYTES", part_bytes)
        placed = placed_of(shape, ranks)
        begun = begin_shared(bucket, placed, [{"a": of_rank} if of_rank else {} for of_rank in ranks])
        sent = [upload(bucket, placed["a"], rank, of_rank, begun) for rank, of_rank in enumerate(ranks)]
        objects = complete_shared(bucket, placed, begun, sent, threads=1)
        grid, made = placed["a"].grid, [*objects, *(one for of_rank in sent for one in of_rank.objects)]
        assert sorted(one.shard for one in made) == list(range(grid.num_shards))
        for _, shard, crc in made:
            found = read(bucket, f"steps/a/{grid.shard_key(shard)}", grid.file_bytes)
            assert found == expected_object(grid, shard)
            assert crc == crc32c(found)
        assert [info.key for info in bucket.list("steps") if info.key.endswith("zarr.json")] == ["steps/a/zarr.json"]
        assert list(bucket.list("pieces")) == []
        assert list(bucket.list_uploads("")) == []


@pytest.mark.parametrize("bit", [0, 7 * 8 + 3])
def test_a_piece_that_is_not_what_its_rank_has_sent_makes_no_object(bit: int) -> None:
    """The CRC behind its chunk would be that of the wrong bytes, and no reader of a part could tell."""
    ranks: Ranks = [[((0, 3), (0, 5))], [((3, 7), (0, 5))]]
    placed, bucket = placed_of((7, 5), ranks), MemoryBucket(min_part_bytes=1)
    begun = begin_shared(bucket, placed, [{"a": boxes} for boxes in ranks])
    sent = [upload(bucket, placed["a"], rank, boxes, begun) for rank, boxes in enumerate(ranks)]
    piece = bytearray(read(bucket, "pieces/1", sum(one.length for one in sent[1].pieces)))
    bucket.delete(["pieces/1"])
    piece[bit // 8] ^= 1 << bit % 8
    bucket.create("pieces/1", piece)
    with pytest.raises(Corrupt, match="array 'a', chunk 0, object pieces/1: expected CRC-32C"):
        complete_shared(bucket, placed, begun, sent, threads=1)
    assert list(bucket.list("steps/a/c")) == []


def test_of_a_store_that_is_away_no_rank_waits_for_the_end_of_each_of_its_uploads() -> None:
    ended: list[str] = []

    class Away(MemoryBucket):
        def upload_part(self, key: str, *_: object, **__: object) -> PartReceipt:
            raise Unavailable(f"upload a part of {key}: the store is away")

        def abort_upload(self, key: str, upload_id: UploadId) -> None:
            ended.append(key)
            raise Unavailable(f"abort {upload_id}: the store is away")

    ranks: Ranks = [[(row, (0, 48))] for row in rows(64, 4)]
    bucket = Away(min_part_bytes=1)
    with small_chunks(64), pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_parts, "PART_BYTES", 200)
        patch.setattr(bucket_writer, "REQUEST_THREADS", 1)
        placed = placed_of((64, 48), ranks)
        with pytest.raises(Unavailable, match="upload a part"):
            upload(bucket, placed["a"], 0, [box for boxes in ranks for box in boxes], {})
    assert (len(ended), len(list(bucket.list_uploads("")))) == (1, 4)


def rows(size: int, num: int) -> list[Interval]:
    return [share for share in (share_of(size, num, index) for index in range(num)) if share[0] < share[1]]


EVEN: Mapping[str, tuple[tuple[int, ...], Ranks]] = {
    "rows": ((64, 48), [[(one, (0, 48))] for one in rows(64, 4)]),
    "columns": ((64, 48), [[((0, 64), one)] for one in rows(48, 4)]),
    "rows and columns": ((64, 48), [[(row, column)] for row in rows(64, 2) for column in rows(48, 2)]),
    "rows of experts": ((8, 64, 48), [[((0, 8), one, (0, 48))] for one in rows(64, 4)]),
    "rows over two of four": ((64, 48), [[(one, (0, 48))] for one in rows(64, 2)] + [[], []]),
    "rows with a common measure": ((6, 48), [[(one, (0, 48))] for one in rows(6, 4)] + [[]]),
    "alone": ((64, 48), [[], [((0, 64), (0, 48))], [], []]),
}


@pytest.mark.parametrize("name", EVEN)
def test_even_cuts_leave_nothing_to_share(name: str) -> None:
    shape, ranks = EVEN[name]
    placed, bucket = placed_of(shape, ranks), MemoryBucket()
    sent = [upload(bucket, placed["a"], rank, boxes, {}) for rank, boxes in enumerate(ranks)]
    assert sum(len(one.objects) for one in sent) == placed["a"].grid.num_shards
    assert not any(one.parts or one.pieces for one in sent)


def test_an_object_has_no_more_parts_than_a_store_takes() -> None:
    spec = box_spec("a", "float32", (1 << 22, 1 << 20), [((0, 1 << 22), (0, 1 << 20))], num_ranks=1)
    (grid,) = grids(Layout(mesh=mesh_of(1), arrays=(spec,), sharding="box"))
    parts = parts_of(grid, 0)
    assert len(parts) <= MAX_PARTS
    assert [chunk for part in parts for chunk in part.chunks] == list(range(grid.num_chunks))


class CountingBucket(MemoryBucket):
    """Counts what is read of pieces."""

    num_reads = 0

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self.num_reads += key.startswith("pieces/")
        super().read_into(key, offset_bytes=offset_bytes, into=into)


def test_narrow_uneven_columns_cost_a_request_for_each_rank_and_part_not_for_each_chunk() -> None:
    ranks: Ranks = [[((0, 400), column)] for column in rows(17, 4)]
    placed, bucket = placed_of((400, 17), ranks), CountingBucket()
    assert (placed["a"].grid.num_shards, placed["a"].grid.num_chunks) == (1, 400)
    sent = [upload(bucket, placed["a"], rank, boxes, {}) for rank, boxes in enumerate(ranks)]
    (made,) = complete_shared(bucket, placed, {}, sent, threads=1)
    grid = placed["a"].grid
    assert read(bucket, f"steps/a/{grid.shard_key(made.shard)}", grid.file_bytes) == expected_object(grid, made.shard)
    assert bucket.num_reads == len(ranks)


def test_boxes_that_leave_a_gap_are_named() -> None:
    ranks: Ranks = [[((0, 3), (0, 8))], [((3, 7), (0, 8))]]
    placed, bucket = placed_of((7, 8), ranks), MemoryBucket()
    sent = [upload(bucket, placed["a"], 0, ranks[0], {}), upload(bucket, placed["a"], 1, [((4, 7), (0, 8))], {})]
    with pytest.raises(Invalid, match="array 'a', chunk 0: expected 224 bytes from the ranks that share it, got 192"):
        complete_shared(bucket, placed, {}, sent, threads=1)
