"""The objects of a write that is made of units: their uploads, begun when they are needed, and their end.

For whoever has units written and gathers what was. Where objects are files there is nothing to begin and nothing to
end. What it knows can be had again from what was told of units, and from the store, so a successor goes on. Neighbours:
`unit_writer`, `filling` (for one process that fills objects itself).
"""

from __future__ import annotations

from behemoth.base.ids import UploadId
from behemoth.checkpoint.array_keys import shard_key
from behemoth.checkpoint.crc import combined
from behemoth.checkpoint.discarding import abort_uploads
from behemoth.checkpoint.interop.unit_writer import Written
from behemoth.checkpoint.interop.units import Unit
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.receipt import WrittenShard
from behemoth.checkpoint.span_table import GrowingTable, SpanTable
from behemoth.checkpoint.threads import run_all
from behemoth.ports import PartReceipt, SavesTo, UploadsParts

COMPLETE_THREADS = 8
"""They wait for the store."""


class ObjectUploads:
    """Of one write, whose objects lie below `prefix`. Used by one thread."""

    def __init__(self, store: SavesTo, prefix: str, layout: Layout) -> None:
        self._store = store
        self._prefix = prefix
        self._layout = layout
        self._spans = GrowingTable()
        self._parts: dict[tuple[int, int], dict[int, PartReceipt]] = {}
        self._ids: dict[tuple[int, int], str] = {}
        self._listed: dict[str, UploadId] | None = None

    def upload_id(self, unit: Unit) -> str:
        """Of the upload to which a unit goes, which is begun if need be; empty where it needs none."""
        if not isinstance(self._store, UploadsParts) or unit.num_parts == 1:
            return ""
        which = unit.array, unit.shard
        if which not in self._ids:
            self._ids[which] = self._listed_or_begun(self._store, shard_key(self._prefix, self._layout, *which))
        return self._ids[which]

    def add(self, written: Written) -> None:
        """What was written, now or by a predecessor: then before any `upload_id`."""
        self._spans.add(written.spans)
        if isinstance(self._store, UploadsParts):
            which = written.array, written.shard
            self._ids.setdefault(which, written.upload_id)
            self._parts.setdefault(which, {})[written.number] = PartReceipt(
                number=written.number, etag=written.etag, crc=written.crc, size_bytes=written.num_bytes
            )

    def spans(self) -> SpanTable:
        """Of all that was written, in order."""
        return self._spans.table()

    def complete(self) -> list[WrittenShard]:
        """Make objects of what was uploaded, and abort what of it nobody needs. Empty where objects are files."""
        store = self._store
        if not isinstance(store, UploadsParts):
            return []

        def complete(which: tuple[int, int]) -> WrittenShard:
            parts = [part for _, part in sorted(self._parts[which].items())]
            crc = combined((part.crc, part.size_bytes) for part in parts)
            if self._ids[which]:
                key = shard_key(self._prefix, self._layout, *which)
                store.complete_upload(key, UploadId(self._ids[which]), parts=parts, crc=crc)
            return WrittenShard(array=which[0], shard=which[1], crc=crc)

        found = run_all(complete, list(self._parts), threads=COMPLETE_THREADS, name="ckpt-complete")
        abort_uploads(store, self._prefix)
        return found

    def _listed_or_begun(self, store: UploadsParts, key: str) -> str:
        if self._listed is None:
            self._listed = {upload.key: upload.upload_id for upload in store.list_uploads(self._prefix)}
        return self._listed.get(key) or store.begin_upload(key)
