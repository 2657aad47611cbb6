"""What a save of a run would cost, as a section of a page and as a document. `behemoth.checkpoint.forecast` counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Section
from behemoth_cli.views.figures import count, percent, seconds, size

if TYPE_CHECKING:
    from behemoth.checkpoint.forecast import Forecast, Spread

_NAMES = (
    "bytes",
    "bytes_per_rank",
    "objects",
    "parts",
    "requests",
    "requests_per_s",
    "requests_per_s_per_prefix",
    "price_usd",
    "sent_per_rank",
    "exchanged_bytes",
    "files",
    "spans",
    "metadata_bytes",
    "staging_bytes",
    "local_disk",
    "seconds",
    "over_read",
    "over_read_alone",
    "over_read_worst",
    "over_read_fleet_alone",
    "restore_kept_bytes",
    "reads_shared",
)
_TURNS = "of disk on a node, for two files of each rank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """The restore that is forecast: its mesh as a text, and whether its nodes pass on what they read."""

    reader: str
    reads_shared: bool


def forecast_section(found: Forecast, restore: Restore) -> Section:
    spent, read = found.seconds, found.over_read
    way = "this run shares reads" if restore.reads_shared else "this run's ranks do"
    return Section(
        title="A save",
        pairs=(
            ("data", f"{size(found.data_bytes)}, and {size(found.metadata_bytes)} of metadata"),
            ("bytes per rank", _spread(found.bytes_per_rank)),
            ("files", f"{found.num_files}, held in {count(found.num_spans)} spans"),
            ("staging", f"{size(found.staging_bytes)} of memory on a node, for two generations"),
            ("to memory", f"{seconds(spent['memory'])}, which is what blocks training"),
            ("to a peer", seconds(spent["peer"])),
            ("to own disks", f"{seconds(spent['local_disk'])}; {size(found.local_disk.capacity_bytes)} {_TURNS}"),
            ("to disk", f"{seconds(spent['disk'])}, if the store is a directory"),
            ("to the store", f"{seconds(spent['store'])}, if it is object storage:"),
            ("  objects", f"{found.num_objects}, of {count(found.num_parts)} parts"),
            ("  requests", f"{count(found.num_requests)}, USD {found.price_usd:.2f}"),
            ("  rate", _rate(found)),
            ("  sent per rank", _spread(found.sent_per_rank)),
            ("  exchanged", f"{size(found.exchanged_bytes)}, {percent(found.exchanged_bytes, found.data_bytes)}"),
            ("restore on", restore.reader),
            ("  over-read", f"{read.once:.4f} x, {read.fleet_alone:.2f} x if each rank reads for itself; {way}"),
            ("  of a rank", f"{read.alone:.2f} x then, {read.worst_alone:.2f} x at most"),
            *_kept(found.restore_kept_bytes),
        ),
    )


def forecast_body(found: Forecast | None, restore: Restore | None) -> dict[str, object]:
    """The fields of the document; they are the same whether or not a forecast is possible."""
    if found is None or restore is None:
        return dict.fromkeys(_NAMES)
    values: tuple[object, ...] = (
        found.data_bytes,
        asdict(found.bytes_per_rank),
        found.num_objects,
        found.num_parts,
        found.num_requests,
        found.requests_per_s,
        found.requests_per_s_per_prefix,
        found.price_usd,
        asdict(found.sent_per_rank),
        found.exchanged_bytes,
        found.num_files,
        found.num_spans,
        found.metadata_bytes,
        found.staging_bytes,
        asdict(found.local_disk),
        dict(found.seconds),
        found.over_read.once,
        found.over_read.alone,
        found.over_read.worst_alone,
        found.over_read.fleet_alone,
        found.restore_kept_bytes,
        restore.reads_shared,
    )
    return dict(zip(_NAMES, values, strict=True))


def _kept(num_bytes: int) -> tuple[tuple[str, str], ...]:
    if not num_bytes:
        return ()
    return (("  kept", f"{size(num_bytes)} of memory on a node at most, beside staging, until scales are known"),)


def _spread(spread: Spread) -> str:
    of_mean = spread.max / spread.mean
    return f"{size(spread.min)} .. {size(spread.max)}, mean {size(spread.mean)}; the largest is {of_mean:.3f} of it"


def _rate(found: Forecast) -> str:
    busiest = count(found.requests_per_s_per_prefix)
    return f"{count(found.requests_per_s)} requests/s, {busiest} for the busiest array"
