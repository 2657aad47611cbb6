"""What a save of a run would cost, as a section of a page and as a document. `behemoth.checkpoint.forecast` counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Section
from behemoth_cli.views.figures import count, percent, seconds, size
from behemoth_cli.views.restores import (
    FIGURES,
    Restore,
    restore_documents,
    restore_figures,
    restore_pairs,
    restores_section,
)

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
    *FIGURES,
    "restores",
    "reads_shared",
)
_TURNS = "of disk on a node, for two files of each rank"


def forecast_sections(found: Forecast, restores: Sequence[Restore], *, reads_shared: bool) -> tuple[Section, ...]:
    """A single restore stands below the save, several in a table of their own."""
    if len(restores) > 1:
        return _save(found), restores_section(restores, reads_shared=reads_shared)
    return (_save(found, restore_pairs(restores[0], reads_shared=reads_shared)),)


def _save(found: Forecast, restored: Sequence[tuple[str, str]] = ()) -> Section:
    spent = found.seconds
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
            *restored,
        ),
    )


def forecast_body(found: Forecast | None, restores: Sequence[Restore], *, reads_shared: bool) -> dict[str, object]:
    """The same names whether or not there is something to tell. Figures of a restore are those of the first one."""
    if found is None:
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
        *restore_figures(restores[0]).values(),
        restore_documents(restores),
        reads_shared,
    )
    return dict(zip(_NAMES, values, strict=True))


def _spread(spread: Spread) -> str:
    of_mean = spread.max / spread.mean
    return f"{size(spread.min)} .. {size(spread.max)}, mean {size(spread.mean)}; the largest is {of_mean:.3f} of it"


def _rate(found: Forecast) -> str:
    busiest = _per_s(found.requests_per_s_per_prefix)
    return f"{_per_s(found.requests_per_s)} requests/s, {busiest} for the busiest array"


def _per_s(rate: float) -> str:
    """Less than one is not none."""
    return count(rate) if rate >= 1 else f"{rate:.2g}"
