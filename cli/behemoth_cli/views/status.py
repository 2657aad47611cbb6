"""A run as its directory tells it: one screen, and one row among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from behemoth.base.slots import ranks_of
from behemoth_cli.out.table import Column, Listing, Page, Section, one_line
from behemoth_cli.views.events import event_item, event_listing
from behemoth_cli.views.figures import age, drained_text, moment, percent, seconds, since, size
from behemoth_cli.views.ledger import BUCKETS, spent_listing

if TYPE_CHECKING:
    from behemoth.app.events import Event
    from behemoth.app.run_directory import DrainState
    from behemoth.app.save_book import SaveRow
    from behemoth.app.snapshot import NodeView, Snapshot
    from behemoth.reconcile.ledger import Buckets

MAX_EVENTS = 10
MAX_SAVES = 3
_NOTHING = "nothing was written yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a run directory cannot be read. `unreadable`: the operating system refuses it; its content is unknown."""

    state: Literal["damaged", "unreadable"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The state of one run as read from its directory. `snapshot` is None before the run was opened, and for a damaged
    directory."""

    name: str
    path: str
    holder_pid: int | None
    """The process that runs it now; None when nobody does, 0 when somebody does whose number is not known."""
    snapshot: Snapshot | None
    num_ranks: int
    ranks_per_node: int
    spent: Buckets | None
    """Rank-microseconds up to the last line of the journal."""
    saves: Sequence[SaveRow]
    events: Sequence[Event]
    drain: DrainState | None = None
    """How far the second store is, where the run names one."""
    trouble: Trouble | None = None
    """Why nothing else can be told; None for nearly all."""


def state_of(look: Look) -> str:
    """The phase; `interrupted` for a run that is not over and that nobody runs, `not started` for one whose first start
    came to nothing."""
    snapshot = look.snapshot
    if look.trouble is not None:
        return look.trouble.state
    if snapshot is None:
        return "starting" if look.holder_pid is not None else "not started"
    if look.holder_pid is None and snapshot.status.outcome is None:
        return "interrupted"
    return snapshot.status.phase


def step_of(snapshot: Snapshot) -> int:
    """Completed steps: what was reported, or committed, which may be news of later ones."""
    status, vitals = snapshot.status, snapshot.vitals
    committed = status.commit.step if status.commit is not None else 0
    return max(status.step, committed, vitals.step if vitals is not None else 0)


def status_page(look: Look, *, now_us: int) -> Page:
    """`now_us`: wall time, from which the age of the data follows."""
    sections = [Section(lines=(f"run/{look.name} {state_of(look)}",)), Section(pairs=_facts(look, now_us))]
    if look.snapshot is not None:
        sections.append(Section(title="Nodes", listing=node_listing(look)))
    sections += [
        Section(title="Time", listing=_spent_listing(look.spent)),
        Section(title="Checkpoints", listing=_save_listing(look.saves[-MAX_SAVES:], now_us)),
        Section(title="Events", listing=event_listing(look.events[-MAX_EVENTS:])),
    ]
    return Page(kind="RunStatus", name=f"run/{look.name}", sections=tuple(sections), body=_item(look, now_us))


def run_listing(looks: Sequence[Look], *, now_us: int) -> Listing:
    """One row a run."""
    return Listing(
        kind="RunList",
        columns=(
            Column(name="name"),
            Column(name="state"),
            Column(name="step", align="right"),
            Column(name="attempt", align="right"),
            Column(name="ranks", align="right"),
            Column(name="checkpoint", align="right"),
            Column(name="age", align="right"),
            Column(name="message", is_wide=True),
            Column(name="directory", is_wide=True),
        ),
        rows=tuple(_row(look, now_us) for look in looks),
        items=tuple(_item(look, now_us) for look in looks),
        names=tuple(f"run/{look.name}" for look in looks),
        empty="no runs under ./runs; `behemoth run FILE` starts one",
    )


def node_listing(look: Look) -> Listing:
    """One row a node, in placement order."""
    nodes = look.snapshot.nodes if look.snapshot is not None else ()
    return Listing(
        kind="NodeList",
        columns=(
            Column(name="node"),
            Column(name="state"),
            Column(name="slot", align="right"),
            Column(name="incarnation", align="right"),
            Column(name="ranks", align="right", is_wide=True),
        ),
        rows=tuple(
            (
                node.name,
                node.condition,
                str(node.slot) if node.slot is not None else "-",
                str(node.incarnation),
                _ranks(look, node),
            )
            for node in nodes
        ),
        items=tuple(_node(node) for node in nodes),
        names=tuple(f"node/{node.name}" for node in nodes),
        empty="no nodes yet",
    )


def _ranks(look: Look, node: NodeView) -> str:
    if node.slot is None:
        return "-"
    held = ranks_of(node.slot, look.ranks_per_node)
    return f"{held[0]}..{held[-1]}"


def _facts(look: Look, now_us: int) -> tuple[tuple[str, str], ...]:
    running = {None: "nobody", 0: "a live process"}.get(look.holder_pid, f"process {look.holder_pid}")
    where = [("directory", look.path), ("run by", running)]
    snapshot = look.snapshot
    if snapshot is None:
        return (*where, ("message", _NOTHING))
    status = snapshot.status
    commit = f"step {status.commit.step} ({size(status.commit.size_bytes)})" if status.commit is not None else "none"
    facts = [
        *where,
        ("message", f"{status.reason}: {one_line(status.message)}"),
        ("step", f"{step_of(snapshot)} of {snapshot.total_steps} ({percent(step_of(snapshot), snapshot.total_steps)})"),
        ("furthest step", str(max(status.best_step, step_of(snapshot)))),
        ("step time", seconds(snapshot.step_us / 1e6) if snapshot.step_us else "-"),
        ("attempt", str(status.attempt)),
        ("checkpoint", commit),
        *_drained(look.drain, status.commit.step if status.commit is not None else 0, now_us),
        ("opened", f"{moment(snapshot.opened_us)} ({age((now_us - snapshot.opened_us) / 1e6)} ago)"),
        ("age of data", age((now_us - snapshot.now_us) / 1e6)),
    ]
    if status.num_failures:
        facts.append(("failures without progress", str(status.num_failures)))
    if status.num_save_failures:
        facts.append(("failed saves in a row", f"{status.num_save_failures}: {one_line(status.save_message)}"))
    return tuple(facts)


def _drained(drain: DrainState | None, last_step: int, now_us: int) -> list[tuple[str, str]]:
    if drain is None:
        return []
    text = drained_text(drain.step, last_step)
    if drain.at_us:
        text += f", {age((now_us - drain.at_us) / 1e6)} ago, {size(drain.num_bytes)} in {seconds(drain.seconds)}"
    return [("drained", text), *([("drain failed", one_line(drain.trouble))] if drain.trouble else [])]


def _spent_listing(spent: Buckets | None) -> Listing:
    if spent is None:
        return spent_listing((), total_s=0)
    return spent_listing([(name, getattr(spent, name) / 1e6) for name in BUCKETS], total_s=spent.total / 1e6)


def _save_listing(saves: Sequence[SaveRow], now_us: int) -> Listing:
    return Listing(
        kind="SaveList",
        columns=(
            Column(name="step", align="right"),
            Column(name="write"),
            Column(name="size", align="right"),
            Column(name="age", align="right"),
        ),
        rows=tuple(
            (str(row.step), row.write_id, size(row.size_bytes), since(row.committed_us, now_us)) for row in saves
        ),
    )


def _row(look: Look, now_us: int) -> tuple[str, ...]:
    snapshot = look.snapshot
    if snapshot is None:
        message = one_line(look.trouble.message) if look.trouble is not None else _NOTHING
        return (look.name, state_of(look), "-", "-", "-", "-", "-", message, look.path)
    status = snapshot.status
    return (
        look.name,
        state_of(look),
        f"{step_of(snapshot)}/{snapshot.total_steps}",
        str(status.attempt),
        str(look.num_ranks),
        str(status.commit.step) if status.commit is not None else "-",
        age((now_us - snapshot.opened_us) / 1e6),
        one_line(status.message),
        look.path,
    )


def _item(look: Look, now_us: int) -> dict[str, object]:
    found: dict[str, object] = {
        "name": look.name,
        "directory": look.path,
        "state": state_of(look),
        "isLive": look.holder_pid is not None,
        "pid": look.holder_pid or None,
    }
    snapshot = look.snapshot
    if look.trouble is not None:
        return {**found, "reason": look.trouble.state.capitalize(), "message": look.trouble.message}
    if snapshot is None:
        return {**found, "message": _NOTHING}
    status = snapshot.status
    commit = status.commit
    return {
        **found,
        "phase": status.phase,
        "reason": status.reason,
        "message": status.message,
        "outcome": status.outcome,
        "step": step_of(snapshot),
        "bestStep": status.best_step,
        "totalSteps": snapshot.total_steps,
        "attempt": status.attempt,
        "numFailures": status.num_failures,
        "numSaveFailures": status.num_save_failures,
        "commit": {"step": commit.step, "writeId": commit.write_id, "sizeBytes": commit.size_bytes} if commit else None,
        **({"drain": _drain_item(look.drain)} if look.drain is not None else {}),
        "openedUs": snapshot.opened_us,
        "dataAgeS": (now_us - snapshot.now_us) / 1e6,
        "nodes": [_node(node) for node in snapshot.nodes],
        "spentRankUs": _spent(look.spent),
        "events": [event_item(event) for event in look.events[-MAX_EVENTS:]],
    }


def _drain_item(drain: DrainState) -> dict[str, object]:
    return {
        "url": drain.url,
        "step": drain.step,
        "atUs": drain.at_us or None,
        "numBytes": drain.num_bytes,
        "seconds": drain.seconds,
        "trouble": drain.trouble,
    }


def _spent(spent: Buckets | None) -> dict[str, int] | None:
    if spent is None:
        return None
    return {
        "useful": spent.useful,
        "checkpointStall": spent.checkpoint_stall,
        "detect": spent.detect,
        "restart": spent.restart,
        "restore": spent.restore,
        "recomputed": spent.recomputed,
        "idle": spent.idle,
    }


def _node(node: NodeView) -> dict[str, object]:
    return {"name": node.name, "state": node.condition, "slot": node.slot, "incarnation": node.incarnation}
