"""What the ranks of a DCP save cannot upload alone, done by its coordinator: objects in which boxes of several ranks
meet.

Before the ranks write it begins the uploads of such objects, so that each rank sends the parts that it holds whole;
afterwards it puts the other parts together from the pieces that ranks have left in the bucket, and completes. It reads
no more than the pieces of a part per thread at a time. Neighbours: `object_parts` (what is whose), `bucket_writer` (a
rank), `publish`, which proves the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import UploadId
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.filling import completed
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.upload_writer import REQUEST_THREADS
from behemoth.dcp.boxes import runs_of
from behemoth.dcp.bucket_writer import by_object
from behemoth.dcp.object_parts import ObjectPart, own_parts, part_bytes, parts_of, whole_chunks
from behemoth.dcp.orders import PlacedArray, SentObject, SentObjects, SentPart, SentPiece, ShardName
from behemoth.ports import UploadsParts

RankBoxes = Mapping[str, Sequence[Box]]
"""A rank's boxes by array, none of them empty."""


def begin_shared(
    store: UploadsParts, placed: Mapping[str, PlacedArray], ranks: Sequence[RankBoxes]
) -> dict[ShardName, UploadId]:
    """Begin an upload for each object of several parts that no rank holds whole."""
    several = [one for one in _shared(placed, ranks) if len(parts_of(placed[one[0]].grid, one[1])) > 1]
    ids = run_all(
        lambda one: store.begin_upload(_key(placed, *one)), several, threads=REQUEST_THREADS, name="dcp-begin"
    )
    return dict(zip(several, ids, strict=True))


def complete_shared(
    store: UploadsParts,
    placed: Mapping[str, PlacedArray],
    begun: Mapping[ShardName, UploadId],
    sent: Sequence[SentObjects],
    *,
    threads: int,
) -> list[SentObject]:
    """Make the objects that no rank has sent whole, and remove the pieces. Raises Invalid where ranks have sent less
    than the object, Corrupt where a piece is not what its rank has sent, and the store's errors."""
    borders = _Borders(store, placed, begun, sent)
    objects = borders.complete(threads=threads)
    store.delete([one.pieces_key for one in sent if one.pieces])
    return objects


def _shared(placed: Mapping[str, PlacedArray], ranks: Sequence[RankBoxes]) -> Iterator[ShardName]:
    """The objects that no rank uploads alone, by the rule of `bucket_writer`."""
    for name, one in placed.items():
        grid = one.grid
        left = set(range(grid.num_shards))
        for boxes in (rank[name] for rank in ranks if name in rank):
            whole = whole_chunks(grid, (run for box in boxes for run in runs_of(grid, box)))
            met = {grid.place(chunk)[0] for chunk in whole}
            left -= {shard for shard in met if len(own_parts(grid, shard, whole)) == len(parts_of(grid, shard))}
        yield from ((name, shard) for shard in sorted(left))


def _key(placed: Mapping[str, PlacedArray], name: str, shard: int) -> str:
    return f"{placed[name].folder}/{placed[name].grid.shard_key(shard)}"


class _Range(NamedTuple):
    """Bytes of a rank's object of pieces, from `start` on."""

    start: int
    data: memoryview

    def of(self, piece: SentPiece) -> memoryview:
        return self.data[piece.at - self.start :][: piece.length]


class _Borders:
    """The work that is left when all ranks have sent their parts. Immutable; shared by several threads."""

    def __init__(
        self,
        store: UploadsParts,
        placed: Mapping[str, PlacedArray],
        begun: Mapping[ShardName, UploadId],
        sent: Sequence[SentObjects],
    ) -> None:
        self._store = store
        self._placed = placed
        self._begun = begun
        self._whole = {(one.array, one.shard) for of_rank in sent for one in of_rank.objects}
        self._sent = by_object(one for of_rank in sent for one in of_rank.parts)
        self._pieces: dict[tuple[str, int], list[tuple[SentPiece, str]]] = {}
        for of_rank in sent:
            for piece in of_rank.pieces:
                self._pieces.setdefault((piece.array, piece.chunk), []).append((piece, of_rank.pieces_key))

    def complete(self, *, threads: int) -> list[SentObject]:
        shards = [
            (name, shard)
            for name, one in self._placed.items()
            for shard in range(one.grid.num_shards)
            if (name, shard) not in self._whole
        ]
        parts = [(name, part) for name, shard in shards for part in self._missing(name, shard)]
        made = run_all(lambda one: self._send(*one), parts, threads=threads, name="dcp-border")
        objects = [one for one in made if isinstance(one, SentObject)]
        for which, receipts in by_object(one for one in made if isinstance(one, SentPart)).items():
            self._sent.setdefault(which, []).extend(receipts)
        several = [one for one in shards if one in self._begun]
        return objects + run_all(self._complete, several, threads=REQUEST_THREADS, name="dcp-complete")

    def _missing(self, name: str, shard: int) -> Iterator[ObjectPart]:
        there = {receipt.number for receipt in self._sent.get((name, shard), ())}
        return (part for part in parts_of(self._placed[name].grid, shard) if part.number not in there)

    def _send(self, name: str, part: ObjectPart) -> SentObject | SentPart:
        fetched = self._fetched(name, part)
        buffers, crc = part_bytes(self._placed[name].grid, part, lambda chunk: self._data(name, chunk, fetched))
        key = _key(self._placed, name, part.shard)
        if part.num_parts == 1:
            self._store.create(key, b"".join(buffers))
            return SentObject(name, part.shard, crc)
        upload_id = self._begun[name, part.shard]
        receipt = self._store.upload_part(key, upload_id, number=part.number, buffers=buffers, crc=crc)
        return SentPart(name, part.shard, receipt)

    def _fetched(self, name: str, part: ObjectPart) -> dict[str, _Range]:
        """The pieces of a part that ranks left, by the keys of their objects. A rank's pieces of one part lie side by
        side, so it takes one request for each rank, however narrow the boxes are that cut the chunks."""
        bounds: dict[str, tuple[int, int]] = {}
        for piece, key in (one for chunk in part.chunks for one in self._pieces.get((name, chunk), ())):
            start, stop = bounds.get(key, (piece.at, piece.at))
            bounds[key] = min(start, piece.at), max(stop, piece.at + piece.length)
        fetched: dict[str, _Range] = {}
        for key, (start, stop) in bounds.items():
            data = memoryview(bytearray(stop - start))
            self._store.read_into(key, offset_bytes=start, into=data)
            fetched[key] = _Range(start, data)
        return fetched

    def _data(self, name: str, chunk: int, fetched: Mapping[str, _Range]) -> Iterator[tuple[memoryview, int]]:
        pieces = sorted(self._pieces.get((name, chunk), ()))
        expected_bytes = self._placed[name].grid.data_bytes(chunk)
        got_bytes = sum(piece.length for piece, _ in pieces)
        if got_bytes != expected_bytes:
            raise Invalid(
                f"array {name!r}, chunk {chunk}: expected {expected_bytes} bytes from the ranks that share it, got "
                f"{got_bytes}",
                hint="the planner cut the tensor into boxes that do not cover it once",
                code="dcp-coverage",
            )
        for piece, key in pieces:
            data = fetched[key].of(piece)
            crc = crc32c(data)
            if crc != piece.crc:  # a CRC behind these bytes would make them look as if they had been saved
                raise Corrupt(
                    f"array {name!r}, chunk {chunk}, object {key}: expected CRC-32C {piece.crc:08x} over "
                    f"{piece.length} bytes at {piece.at}, as its rank has sent them, got {crc:08x}",
                    hint="bytes were changed in the store or on their way: save again",
                    code="dcp-piece",
                )
            yield data, crc

    def _complete(self, one: ShardName) -> SentObject:
        key = _key(self._placed, *one)
        return SentObject(*one, completed(self._store, key, self._begun[one], self._sent.get(one, ())))
