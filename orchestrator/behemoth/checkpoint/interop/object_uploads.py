"""The multipart uploads of a write that is made of units: begun when needed, completed or aborted at the end.

Used by the process that hands units out and collects the results. Where objects are files there is nothing to begin or
complete. Its state can be rebuilt from the results of units and from the store, so that a successor can go on.
Neighbours: `unit_writer`, `filling` (for one process that fills objects itself).
"""

from __future__ import annotations

from behemoth.base.ids import UploadId
from behemoth.checkpoint.array_keys import shard_key
from behemoth.checkpoint.crc import combined
from behemoth.checkpoint.discarding import abort_uploads
from behemoth.checkpoint.filling import completed
from behemoth.checkpoint.interop.unit_writer import Written
from behemoth.checkpoint.interop.units import WriteUnit
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.receipt import WrittenShard
from behemoth.checkpoint.span_table import GrowingTable, SpanTable
from behemoth.checkpoint.threads import run_all
from behemoth.ports import PartReceipt, SavesTo, UploadsParts

COMPLETE_THREADS = 8
"""They wait for the store."""


class ObjectUploads:
    """The uploads of one write, whose objects lie below `prefix`. Used by one thread."""

    def __init__(self, store: SavesTo, prefix: str, layout: Layout) -> None:
        self._store = store
        self._prefix = prefix
        self._layout = layout
        self._spans = GrowingTable()
        self._parts: dict[tuple[int, int], dict[int, PartReceipt]] = {}
        self._ids: dict[tuple[int, int], str] = {}
        self._listed: dict[str, UploadId] | None = None

    def upload_id(self, unit: WriteUnit) -> str:
        """The id of the upload that a unit belongs to, which is begun if need be; empty where the unit needs no
        upload."""
        if not isinstance(self._store, UploadsParts) or unit.num_parts == 1:
            return ""
        which = unit.array, unit.shard
        if which not in self._ids:
            self._ids[which] = self._listed_or_begun(self._store, shard_key(self._prefix, self._layout, *which))
        return self._ids[which]

    def add(self, written: Written) -> None:
        """Take in the result of a unit. Those of an earlier process come first, before any call of `upload_id`."""
        self._spans.add(written.spans)
        if isinstance(self._store, UploadsParts):
            which = written.array, written.shard
            self._ids.setdefault(which, written.upload_id)
            self._parts.setdefault(which, {})[written.number] = PartReceipt(
                number=written.number, etag=written.etag, crc=written.crc, size_bytes=written.num_bytes
            )

    def spans(self) -> SpanTable:
        """The spans of all units that were written, by array, chunk and offset."""
        return self._spans.table()

    def complete(self) -> list[WrittenShard]:
        """Complete all uploads, and abort those that nobody needs. Blocks. Returns the objects; none where they are
        files."""
        store = self._store
        if not isinstance(store, UploadsParts):
            return []

        def complete(which: tuple[int, int]) -> WrittenShard:
            upload_id, parts = self._ids[which], self._parts[which].values()
            if upload_id:
                key = shard_key(self._prefix, self._layout, *which)
                crc = completed(store, key, UploadId(upload_id), parts)
            else:
                crc = combined((part.crc, part.size_bytes) for part in parts)
            return WrittenShard(array=which[0], shard=which[1], crc=crc)

        found = run_all(complete, list(self._parts), threads=COMPLETE_THREADS, name="ckpt-complete")
        abort_uploads(store, self._prefix)
        return found

    def _listed_or_begun(self, store: UploadsParts, key: str) -> str:
        if self._listed is None:
            self._listed = {upload.key: upload.upload_id for upload in store.list_uploads(self._prefix)}
        return self._listed.get(key) or store.begin_upload(key)
