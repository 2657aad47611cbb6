"""Uploads a rank's parts from its arena to object storage, and completes the objects that are its to complete.

The counterpart of `writer`, with the same receipt and the same promises: it runs in the store process, decides nothing
(`part_plan` did), and copies no payload but what other ranks hand over and objects that one request takes. In order: it
begins the uploads that it completes, so that others can feed them; sends its parts; and, once all their uploaders have
told what they sent, completes the objects. Nothing is visible in the store before that. Neighbours: `exchange`, through
which ranks ask each other, `part_bytes`, and `shard_proof`, with which the leader judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from behemoth.base.errors import BehemothError, Conflict
from behemoth.base.ids import Rank, UploadId
from behemoth.checkpoint.crc import combined, crc32c
from behemoth.checkpoint.exchange import Company, Exchange, OpenWrite, SentPart, in_turn
from behemoth.checkpoint.filling import completed
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.part_bytes import PartBytes
from behemoth.checkpoint.part_plan import PlannedPart, ShardId, plan_parts
from behemoth.checkpoint.rank_write import RankWrite, payload_of
from behemoth.checkpoint.receipt import Receipt, WrittenShard
from behemoth.checkpoint.threads import batched, run_all
from behemoth.checkpoint.writer import ends_array
from behemoth.ports import UploadsParts

REQUEST_THREADS = 8
"""For requests without a payload: they wait for the store and do not compute."""


def upload_rank(store: UploadsParts, write: RankWrite, company: Company) -> Receipt:
    """Upload the parts of its snapshot that the rank owns; record all CRCs in the arena.

    Blocks until its parts are in the store and the objects that it completes are there. All ranks of the write must be
    under way at the same time, as they wait for each other.
    An unfinished snapshot is waited for first. Memory: what other ranks hand over for the parts that `write.threads`
    threads send at a time, some MiB each.
    Raises Conflict when cancelled (asked before each request and during each wait), when the snapshot was replaced
    meanwhile, or when another rank has given up, Unavailable or Timeout when one is lost, and the store's errors;
    uploads that it has begun are aborted then.
    """
    sequence = write.sequence()
    upload = OpenWrite(write.plan, write.arena, write.generation, sequence)
    snapshot = write.follower(sequence).whole()
    company.open_writes.enter(snapshot.write_id, upload)
    job = _Job(store, write, upload, company.exchange)
    try:
        shards = job.run()
        job.write_metadata()
        receipt = write.receipt(snapshot, _crcs(write))
    except BaseException as error:
        upload.failed(str(error))
        job.abort()
        raise
    return replace(receipt, shards=tuple(shards))


def _crcs(write: RankWrite) -> list[int]:
    """The CRC-32C of every span, in plan order."""
    data = write.arena.filling(write.generation)
    parts = run_all(
        lambda spans: [crc32c(payload_of(data, span)) for span in spans],
        batched(write.plan.spans, threads=write.threads),
        threads=write.threads,
        name="ckpt-crc",
    )
    return [crc for part in parts for crc in part]


class _Job:
    """One rank's uploads. Parts are sent on several threads, which only read it."""

    def __init__(self, store: UploadsParts, write: RankWrite, upload: OpenWrite, exchange: Exchange) -> None:
        self._store = store
        self._write = write
        self._grids = grids(write.layout)
        self._parts = plan_parts(write.layout, write.plan.rank)
        self._upload = upload
        self._exchange = exchange
        self._bytes = PartBytes(write.layout, self._parts.rank, upload, exchange, cancelled=write.cancelled)
        self._begun: dict[ShardId, UploadId] = {}
        self._num_ranks = write.layout.mesh.num_ranks

    def run(self) -> list[WrittenShard]:
        """What became an object by this rank."""
        shards = list(self._parts.completes)
        run_all(self._begin, shards, threads=REQUEST_THREADS, name="ckpt-begin")
        self._upload.begun(self._begun)
        singles = [part for part in self._parts.parts if part.num_parts == 1]
        parts = [part for part in self._parts.parts if part.num_parts > 1]
        written = run_all(self._send_whole, singles, threads=self._write.threads, name="ckpt-upload")
        ids = self._upload_ids(parts)
        sent = run_all(lambda part: self._send(part, ids), parts, threads=self._write.threads, name="ckpt-upload")
        self._upload.sent(_by_completer(parts, sent))
        return written + self._complete(shards)

    def write_metadata(self) -> None:
        """The zarr.json of every array whose last byte is this rank's to tell: one rank's, for each array."""
        arrays = [span.array for span in self._write.plan.writes if ends_array(self._grids[span.array], span)]

        def write(array: int) -> None:
            self._write.go_on()
            self._store.create(self._write.metadata_key(array), self._grids[array].zarr_json())

        run_all(write, arrays, threads=REQUEST_THREADS, name="ckpt-metadata")

    def abort(self) -> None:
        """Abort the uploads that this rank has begun. After the first that fails the rest is left to gc: a store that
        is away would take its full patience for each, while others wait for the failure to be reported."""
        with suppress(BehemothError):
            run_all(
                lambda shard: self._store.abort_upload(self._key(shard), self._begun[shard]),
                list(self._begun),
                threads=REQUEST_THREADS,
                name="ckpt-abort",
            )

    def _begin(self, shard: ShardId) -> None:
        self._write.go_on()
        self._begun[shard] = self._store.begin_upload(self._key(shard))

    def _upload_ids(self, parts: Sequence[PlannedPart]) -> Mapping[ShardId, UploadId]:
        """The upload ids of all shards that this rank has a part of, from the ranks that complete them."""
        wanted: dict[Rank, dict[ShardId, None]] = {}
        for part in parts:
            wanted.setdefault(part.completer, {})[part.shard] = None
        found: dict[ShardId, UploadId] = {}
        for completer in in_turn(wanted, self._parts.rank, self._num_ranks):
            shards = wanted[completer]
            ids = self._exchange.upload_ids(completer, list(shards), cancelled=self._write.cancelled)
            found.update(zip(shards, ids, strict=True))
        return found

    def _send(self, part: PlannedPart, ids: Mapping[ShardId, UploadId]) -> SentPart:
        self._write.go_on()
        content = self._bytes.of(part)
        receipt = self._store.upload_part(
            self._key(part.shard), ids[part.shard], number=part.number, buffers=content.buffers, crc=content.crc
        )
        self._upload.check_held()  # or the bytes that were sent may have been others
        return SentPart(part.shard, receipt, content.payload_crc, content.payload_bytes)

    def _send_whole(self, part: PlannedPart) -> WrittenShard:
        self._write.go_on()
        content = self._bytes.of(part)
        self._store.create(self._key(part.shard), b"".join(content.buffers))
        self._upload.check_held()
        return WrittenShard(*part.shard, content.crc, content.payload_crc)

    def _complete(self, shards: Sequence[ShardId]) -> list[WrittenShard]:
        receipts: dict[ShardId, list[SentPart]] = {shard: [] for shard in shards}
        num_parts = Counter(rank for shard in shards for rank in self._parts.completes[shard])
        for uploader in in_turn(num_parts, self._parts.rank, self._num_ranks):
            for one in self._sent_by(uploader, num_parts[uploader]):
                if one.shard in receipts:
                    receipts[one.shard].append(one)
        return run_all(
            lambda shard: self._complete_one(shard, receipts[shard]), shards, threads=REQUEST_THREADS, name="ckpt-end"
        )

    def _sent_by(self, uploader: Rank, num_parts: int) -> list[SentPart]:
        """What another rank says that it has sent: so many parts by the plan, and it is asked for no more."""
        found: list[SentPart] = []
        while len(found) < num_parts:
            told = self._exchange.receipts(
                uploader, self._parts.rank, first=len(found), cancelled=self._write.cancelled
            )
            if not told:
                break  # who completes the shard says what is missing
            found += told
        return found

    def _complete_one(self, shard: ShardId, sent: Sequence[SentPart]) -> WrittenShard:
        """Raises Conflict unless the parts are those of the plan, to the byte."""
        self._write.go_on()
        sent = sorted(sent, key=lambda one: one.receipt.number)
        parts = [one.receipt for one in sent]
        size_bytes, num_parts = self._grids[shard.array].file_bytes, len(self._parts.completes[shard])
        if [part.number for part in parts] != list(range(1, num_parts + 1)) or size_bytes != sum(
            part.size_bytes for part in parts
        ):
            raise Conflict(
                f"shard {self._key(shard)}: expected {num_parts} parts of {size_bytes} bytes together, got "
                f"{len(parts)} of {sum(part.size_bytes for part in parts)} bytes",
                code="upload-parts",
            )
        crc = completed(self._store, self._key(shard), self._begun[shard], parts)
        return WrittenShard(*shard, crc, combined((one.payload_crc, one.payload_bytes) for one in sent))

    def _key(self, shard: ShardId) -> str:
        return self._write.shard_key(*shard)


def _by_completer(parts: Sequence[PlannedPart], sent: Sequence[SentPart]) -> dict[Rank, list[SentPart]]:
    found: dict[Rank, list[SentPart]] = {}
    for part, one in zip(parts, sent, strict=True):
        found.setdefault(part.completer, []).append(one)
    return found
