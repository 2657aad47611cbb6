"""What a save would cost: bytes, objects, requests, memory, seconds, money, from the layout and the rates of machines.

Counts come from the code that the save itself uses (owners, grids, arenas, encoders of its metadata); none is an
estimate. Seconds are the bytes of the slowest rank or node divided by a rate that the caller gives, without overlap of
tiers. Pure. What a restore on one mesh or another costs is asked separately, since one save serves many.
Neighbours: `loads` (file systems), `uploads` (object storage), `over_read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.commit_index import CommitIndex, described, metadata_objects
from behemoth.checkpoint.commit_record import ArraySummary, CommitRecord, format_of
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.grid import Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import loads
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.over_read import OverRead, over_read
from behemoth.checkpoint.scale_reads import kept_of_ranks
from behemoth.checkpoint.scale_waves import kept_share
from behemoth.checkpoint.snapshot_format import NUM_FILES
from behemoth.checkpoint.uploads import UploadPlan, plan_uploads
from behemoth.policy.peers import holders

Tier = Literal["memory", "peer", "local_disk", "disk", "store"]

NUM_PHASES = 3
_RECORDS = 2
"""Objects beside the arrays and their zarr.json: the index and the commit."""
_NO_STEP = Step(0)
_WIDEST_CRC = 0xFFFFFFFF
_REQUESTS_OF_A_PRICE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes per second of each tier, and a price. The defaults are assumptions, to be replaced by what was measured."""

    memory_bytes_per_s: float = 7e9
    """Per rank: staging copies warm pages at 7 to 13 GB/s (checkpoint.md)."""
    peer_bytes_per_s: float = 10e9
    """Per node that takes copies: four fifths of a link of 100 Gbit/s."""
    local_disk_bytes_per_s: float = 2e9
    """Per node: one NVMe drive that writes for long."""
    disk_bytes_per_s: float = 2e9
    """Per node, where the store is a directory: as the drive above."""
    store_bytes_per_s: float = 200e6
    """Per node: 4,000 of them write the reference Behemoth in about 30 s."""
    usd_per_million_requests: float = 5.0
    """List price of PUT, COPY, POST and LIST requests of Amazon S3 Standard in us-east-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Least, mean and largest value of one number over all ranks."""

    min: int
    mean: float
    max: int

    @staticmethod
    def of(values: Ints) -> Spread:
        return Spread(min=int(values.min()), mean=float(values.mean()), max=int(values.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDiskUse:
    """Bytes on the own disk of the node with the most: copied at each save, and taken by the files, which take
    turns."""

    copied_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One save. Counts of objects, parts and requests are of object storage, data and metadata together; `num_files`
    and `num_spans` of a file system."""

    data_bytes: int
    metadata_bytes: int
    """Every zarr.json, the index and the commit record, as the save encodes them."""
    bytes_per_rank: Spread
    """What a rank writes on a file system."""
    num_files: int
    num_spans: int
    """Byte ranges of files that one rank holds within a chunk; the unit of CRCs and receipts."""
    staging_bytes: int
    """Memory of the node with the most: the arenas of its ranks, two generations each, and those of the ranks whose
    copies it holds."""
    local_disk: LocalDiskUse
    sent_per_rank: Spread
    """What a rank uploads to object storage."""
    num_objects: int
    num_parts: int
    num_requests: int
    exchanged_bytes: int
    """Bytes that ranks send to each other before they are uploaded."""
    seconds: dict[Tier, float]
    requests_per_s: float
    """Requests of all ranks per second, while the object store is written."""
    requests_per_s_per_prefix: float
    """Requests per second of the busiest prefix, when each array's folder is a prefix."""
    price_usd: float

    @property
    def exchanged_share(self) -> float:
        """Exchanged bytes / bytes of all arrays (checkpoint.md's goal: at most 0.08)."""
        return self.exchanged_bytes / self.data_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreForecast:
    """One restore of a save."""

    over_read: OverRead
    kept_bytes: int
    """Memory of the node with the most, beside staging: at most, of values that wait for computed scales."""


def forecast(
    layout: Layout,
    *,
    ranks_per_node: int,
    peer_copies: int = 0,
    failure_domain: int = 1,
    rates: Rates,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Forecast:
    """The cost of a save of `layout`. `failure_domain`: of so many nodes in their order, as the run file has it.
    `progress` is called with the phases done and their number. Takes seconds for giant meshes."""
    progress(0, NUM_PHASES)
    of_files = loads(layout)
    progress(1, NUM_PHASES)
    uploads = plan_uploads(replace(layout, sharding="box"))
    progress(2, NUM_PHASES)
    documents = metadata_objects(layout)
    num_records = len(documents) + _RECORDS
    progress(3, NUM_PHASES)
    num_requests = uploads.num_requests + num_records
    copied_bytes = _most_per_node(of_files.snapshot_bytes, ranks_per_node)
    arena_bytes = _per_node(of_files.arena_bytes, ranks_per_node)
    held_bytes = _held_for_others(arena_bytes, copies=peer_copies, failure_domain=failure_domain)
    snapshot_bytes = _per_node(of_files.data_bytes, ranks_per_node)
    if peer_copies:
        snapshot_bytes = _held_for_others(snapshot_bytes, copies=peer_copies, failure_domain=failure_domain)
    seconds: dict[Tier, float] = {
        "memory": int(of_files.data_bytes.max()) / rates.memory_bytes_per_s,
        "peer": int(snapshot_bytes.max()) / rates.peer_bytes_per_s,
        "local_disk": copied_bytes / rates.local_disk_bytes_per_s,
        "disk": _most_per_node(of_files.written_bytes, ranks_per_node) / rates.disk_bytes_per_s,
        "store": _most_per_node(uploads.sent_bytes, ranks_per_node) / rates.store_bytes_per_s,
    }
    return Forecast(
        data_bytes=sum(array.num_bytes for array in layout.arrays),
        metadata_bytes=_metadata_bytes(layout, documents),
        bytes_per_rank=Spread.of(of_files.written_bytes),
        num_files=sum(grid.num_shards for grid in grids(layout)) + num_records,
        num_spans=int(of_files.num_spans.sum()),
        staging_bytes=int((arena_bytes + held_bytes).max()),
        local_disk=LocalDiskUse(copied_bytes=copied_bytes, capacity_bytes=NUM_FILES * copied_bytes),
        sent_per_rank=Spread.of(uploads.sent_bytes),
        num_objects=uploads.num_objects + num_records,
        num_parts=uploads.num_parts + num_records,
        num_requests=num_requests,
        exchanged_bytes=uploads.exchanged_bytes,
        seconds=seconds,
        requests_per_s=num_requests / seconds["store"],
        requests_per_s_per_prefix=_busiest(uploads) / seconds["store"],
        price_usd=num_requests / _REQUESTS_OF_A_PRICE * rates.usd_per_million_requests,
    )


def forecast_restore(
    saved: Layout, layout: Layout, *, ranks_per_node: int, intake: Intake = AS_SAVED
) -> RestoreForecast:
    """`layout` reads a checkpoint of `saved`, by `intake` when its arrays are others. A second for 32,000 ranks."""
    found = origins(saved, layout, step=_NO_STEP, intake=intake)
    kept_bytes = kept_share(ranks_per_node)
    kept = kept_of_ranks(saved, layout, found, kept_bytes=kept_bytes)
    return RestoreForecast(
        over_read=over_read(saved, layout, found, kept_bytes=kept_bytes),
        kept_bytes=_most_per_node(kept, ranks_per_node),
    )


def _most_per_node(of_ranks: Ints, ranks_per_node: int) -> int:
    return int(_per_node(of_ranks, ranks_per_node).max())


def _per_node(of_ranks: Ints, ranks_per_node: int) -> Ints:
    return np.add.reduceat(of_ranks, np.arange(0, len(of_ranks), ranks_per_node))


def _held_for_others(of_nodes: Ints, *, copies: int, failure_domain: int) -> Ints:
    """For each node, the sum over those whose copies it holds: more of them on some nodes where the last failure domain
    is not full."""
    held = np.zeros_like(of_nodes)
    domains = [node // failure_domain for node in range(len(of_nodes))]
    for node, num_bytes in enumerate(of_nodes.tolist()):
        held[list(holders(node, domains, stride=failure_domain, copies=copies))] += num_bytes
    return held


def _busiest(uploads: UploadPlan) -> int:
    return max(one.requests_per_array for one in uploads.uploads)


def _metadata_bytes(layout: Layout, documents: dict[str, bytes]) -> int:
    """Encoded as by a commit, with CRCs of full width; names of run and write are left empty."""
    crcs = (_WIDEST_CRC,) * len(layout.arrays)
    form, features = format_of(layout)
    index = CommitIndex(layout=layout, metadata=described(documents), content_crcs=crcs).encode()
    record = CommitRecord(
        format=form,
        required_features=features,
        run="",
        step=_NO_STEP,
        write_id=WriteId(""),
        attempt=Attempt(1),
        mesh=layout.mesh,
        layout_digest=layout.digest,
        index_bytes=len(index),
        index_crc=_WIDEST_CRC,
        data_bytes=sum(array.num_bytes for array in layout.arrays),
        arrays=tuple(ArraySummary(name=array.name, content_crc=_WIDEST_CRC, is_zero=False) for array in layout.arrays),
        committed_us=0,
        held_prints="0" * (8 * layout.mesh.num_ranks),
    )
    return sum(map(len, documents.values())) + len(index) + len(record.encode())
