"""The end of a run on one page: what came of it, where the time went, each fault, each checkpoint, the digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, Page, Section, one_line
from behemoth_cli.views.figures import drained_text, rate, seconds, size
from behemoth_cli.views.ledger import BUCKETS, spent_listing

if TYPE_CHECKING:
    from behemoth.app.restore_book import RestoreRow
    from behemoth.app.summary import CheckpointTable, FaultTable, LedgerTable, Summary


def summary_page(summary: Summary) -> Page:
    """The page of a summary. Its document has the fields of `summary.json` in camelCase, like every other document."""
    outcome = summary.outcome or "interrupted"
    reason = f": {one_line(summary.reason)}" if summary.reason else ""
    return Page(
        kind="RunSummary",
        name=f"run/{summary.name}",
        sections=(
            Section(lines=(f"run/{summary.name} {outcome}{reason}",)),
            Section(pairs=_facts(summary)),
            Section(title="Time", listing=ledger_listing(summary.ledger)),
            Section(title=_fault_title(summary), listing=_fault_listing(summary.faults)),
            *_restore_sections(summary.restores),
            Section(title="Checkpoints", listing=_checkpoint_listing(summary.checkpoints)),
            Section(lines=(f"digest: {_digest(summary)}",)),
        ),
        body={camel_case(name): _renamed(value) for name, value in summary.document().items()},
    )


def camel_case(name: str) -> str:
    """`to_first_step_s` as `toFirstStepS`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _renamed(value: object) -> object:
    """Every key at any depth; the keys of a summary are all names of fields."""
    match value:
        case dict():
            return {camel_case(name): _renamed(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_renamed(entry) for entry in value]
        case _:
            return value


def ledger_listing(ledger: LedgerTable) -> Listing:
    """Rank-seconds by what they were spent on; the last row is the sum, wall time x ranks."""
    spent = [(name, float(getattr(ledger, f"{name}_s"))) for name in BUCKETS]
    total = (f"total ({seconds(ledger.wall_s)} x {ledger.num_ranks} ranks)", sum(each for _, each in spent))
    return spent_listing([*spent, total], total_s=ledger.wall_s * ledger.num_ranks)


def _facts(summary: Summary) -> tuple[tuple[str, str], ...]:
    drained = () if summary.drain is None else (("drained", drained_text(summary.drain.step, summary.step)),)
    return (
        ("steps", f"{summary.step} of {summary.total_steps} committed"),
        ("attempts", str(summary.num_attempts)),
        ("wall time", seconds(summary.ledger.wall_s)),
        ("ranks", str(summary.ledger.num_ranks)),
        *drained,
    )


def _digest(summary: Summary) -> str:
    if summary.digest_trouble:
        return f"not read back, {one_line(summary.digest_trouble)}"
    return summary.digest or "none, nothing was committed"


def _fault_title(summary: Summary) -> str:
    shown = len(summary.faults)
    return "Faults" if shown == summary.num_faults else f"Faults (the last {shown} of {summary.num_faults})"


def _fault_listing(faults: tuple[FaultTable, ...]) -> Listing:
    """Three phases, one after the other, then the two totals: from the first sign to a completed step, and to regained
    progress."""
    heads = ("detect", "restart", "restore", "to step", "to regain")
    return Listing(
        kind="FaultList",
        columns=(
            Column(name="cause"),
            Column(name="where"),
            *(Column(name=head, align="right") for head in heads),
            Column(name="reason"),
        ),
        rows=tuple(
            (
                fault.cause,
                _where(fault),
                seconds(fault.detect_s),
                seconds(fault.restart_s),
                seconds(fault.restore_s),
                seconds(fault.to_first_step_s),
                seconds(fault.to_regained_s),
                one_line(fault.reason),
            )
            for fault in faults
        ),
    )


def _where(fault: FaultTable) -> str:
    parts = [str(fault.node) if fault.node is not None else "", f"rank {fault.rank}" if fault.rank is not None else ""]
    return " ".join(part for part in parts if part) or "-"


def _restore_sections(restores: tuple[RestoreRow, ...]) -> tuple[Section, ...]:
    """Nothing for a run that never had to go back to a checkpoint."""
    if not restores:
        return ()
    heads = ("attempt", "step", "memory", "peer", "disk", "several", "store", "from peers", "from store")
    listing = Listing(
        kind="RestoreList",
        columns=(*(Column(name=head, align="right") for head in heads), Column(name="why not nearer")),
        rows=tuple(
            (
                str(one.attempt),
                str(one.step),
                str(one.num_from_memory),
                str(one.num_from_peer),
                str(one.num_from_disk),
                str(one.num_from_several),
                str(one.num_from_store),
                size(one.peer_bytes),
                size(one.store_bytes),
                one_line(one.missed) or "-",
            )
            for one in restores
        ),
    )
    return (Section(title="Restores (ranks by where their state came from)", listing=listing),)


def _checkpoint_listing(checkpoints: tuple[CheckpointTable, ...]) -> Listing:
    return Listing(
        kind="SaveList",
        columns=(
            Column(name="step", align="right"),
            Column(name="write"),
            Column(name="size", align="right"),
            Column(name="seconds", align="right"),
            Column(name="rate", align="right"),
        ),
        rows=tuple(
            (str(one.step), one.write_id, size(one.size_bytes), seconds(one.seconds), rate(one.bytes_per_s))
            for one in checkpoints
        ),
    )
