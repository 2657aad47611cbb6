"""Checkpoints as rows, one in full, and what verification found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from behemoth_cli.out.table import Column, Listing, Page, Section, one_line
from behemoth_cli.views.figures import moment, since, size

if TYPE_CHECKING:
    from behemoth.checkpoint.commit_record import CommitRecord
    from behemoth.checkpoint.layout import ArraySpec, SplitAxes
    from behemoth.checkpoint.opened import Commit
    from behemoth.checkpoint.problem import Problem
    from behemoth.checkpoint.verify import Verification
    from behemoth.spec.mesh import Mesh

State = Literal["ok", "damaged", "unreadable", "rejected", "newer", "foreign", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One checkpoint of a listing. `ok`: its record is intact, its arrays were not looked at. `newer`: written by a
    later release. `unreadable`: its record is a link, or one that the file system does not give. `foreign`: no
    checkpoint, but a file that has no business where commits lie. `gone`: pinned, and not there. `record` is there when
    it could be read, `reason` when the state is another than `ok`."""

    step: int | None
    write_id: str
    state: State
    record: CommitRecord | None
    reason: str
    pin: str | None = None
    """Why somebody has pinned it; None when nobody has."""
    key: str = ""
    """The file, below the store's root, of what names no step."""


def checkpoint_listing(found: Sequence[Found], *, now_us: int) -> Listing:
    """One row each, oldest first."""
    return Listing(
        kind="CheckpointList",
        columns=(
            Column(name="step", align="right"),
            Column(name="write"),
            Column(name="age", align="right"),
            Column(name="size", align="right"),
            Column(name="arrays", align="right"),
            Column(name="pinned"),
            Column(name="state"),
            Column(name="attempt", align="right", is_wide=True),
            Column(name="mesh", is_wide=True),
            Column(name="reason", is_wide=True),
        ),
        rows=tuple(_row(one, now_us) for one in found),
        items=tuple(_item(one) for one in found),
        names=tuple(f"checkpoint/{one.step}" for one in found if one.step is not None),
        empty="no checkpoints yet",
    )


def checkpoint_page(commit: Commit, digest: str | None, *, pin: str | None) -> Page:
    """Provenance, and every array. `digest` is given when it was computed; `pin` as in `Found`."""
    record = commit.record
    pairs = [
        ("run", record.run),
        ("write", record.write_id),
        ("attempt", str(record.attempt)),
        ("committed", moment(record.committed_us)),
        ("mesh", mesh_text(record.mesh)),
        ("arrays", f"{len(commit.layout.arrays)} of {size(record.data_bytes)}"),
        ("format", f"{record.format.major}.{record.format.minor}"),
        ("layout", f"sha256:{record.layout_digest}"),
        ("folder", record.prefix),
        ("pinned", "no" if pin is None else pin or "yes"),
    ]
    ends = (Section(lines=(f"digest: {digest}",)),) if digest is not None else ()
    return Page(
        kind="Checkpoint",
        name=f"checkpoint/{record.step}",
        sections=(
            Section(lines=(f"checkpoint/{record.step}",)),
            Section(pairs=tuple(pairs)),
            Section(title="Arrays", listing=_arrays(commit)),
            *ends,
        ),
        body={
            **_record_item(record),
            "digest": digest,
            "pinned": pin is not None,
            "pinReason": pin or None,
            "arrays": _array_items(commit),
        },
    )


def verify_page(reports: Sequence[tuple[Found, Verification]], of_store: Sequence[Problem]) -> Page:
    """One line a checkpoint, then one row for each damaged place; files that are no part of a checkpoint apart from
    those. `of_store` is damage beside the checkpoints."""
    problems: list[tuple[int | None, Problem]] = [(None, problem) for problem in of_store]
    problems += [
        (report.step, problem) for one, report in reports for problem in report.problems if one.state != "foreign"
    ]
    foreign = [one for one, _ in reports if one.state == "foreign"]
    store_lines = (f"store damaged: {_places(len(of_store))}",) if of_store else ()
    return Page(
        kind="VerifyReport",
        sections=(
            Section(lines=(*store_lines, *(_verdict(one, report) for one, report in reports))),
            Section(title="Damage", listing=_problem_listing(problems)),
            Section(title="Foreign files", listing=_foreign_listing(foreign)),
        ),
        body={
            "isIntact": not problems and not foreign,
            "store": {"isIntact": not of_store, "problems": [_problem_item(problem) for problem in of_store]},
            "checkpoints": [_report_item(one, report) for one, report in reports],
        },
    )


def mesh_text(mesh: Mesh) -> str:
    """The axes that are used."""
    sizes = [f"{axis.name}={getattr(mesh, axis.name)}" for axis in fields(mesh) if getattr(mesh, axis.name) > 1]
    return " ".join(sizes) or "one rank"


def _row(one: Found, now_us: int) -> tuple[str, ...]:
    record = one.record
    step = str(one.step) if one.step is not None else "-"
    pinned = "yes" if one.pin is not None else "-"
    if record is None:
        return (step, one.write_id or "-", "-", "-", "-", pinned, one.state, "-", "-", one_line(one.reason))
    return (
        step,
        one.write_id,
        since(record.committed_us, now_us),
        size(record.data_bytes),
        str(len(record.arrays)),
        pinned,
        one.state,
        str(record.attempt),
        mesh_text(record.mesh),
        one_line(one.reason) or "-",
    )


def _item(one: Found) -> dict[str, object]:
    known = _record_item(one.record) if one.record is not None else {"step": one.step, "writeId": one.write_id or None}
    pin = {"pinned": one.pin is not None, "pinReason": one.pin or None}
    return {**known, "state": one.state, "reason": one.reason or None, "file": one.key or None, **pin}


def _record_item(record: CommitRecord) -> dict[str, object]:
    return {
        "step": record.step,
        "writeId": record.write_id,
        "run": record.run,
        "attempt": record.attempt,
        "committedUs": record.committed_us,
        "sizeBytes": record.data_bytes,
        "numArrays": len(record.arrays),
        "mesh": {axis.name: getattr(record.mesh, axis.name) for axis in fields(record.mesh)},
        "format": f"{record.format.major}.{record.format.minor}",
        "layoutDigest": f"sha256:{record.layout_digest}",
        "folder": record.prefix,
    }


def _arrays(commit: Commit) -> Listing:
    return Listing(
        kind="ArrayList",
        columns=(
            Column(name="name"),
            Column(name="dtype"),
            Column(name="shape"),
            Column(name="bytes", align="right"),
            Column(name="shared over"),
        ),
        rows=tuple(
            (array.name, array.dtype, _shape(array.shape), str(array.num_bytes), _sharing(array))
            for array in commit.layout.arrays
        ),
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(each) for each in shape) or "scalar"


def _sharing(array: ArraySpec) -> str:
    """`dim 1: tp, flat: cp x dp`."""
    flat = [] if array.flat_over is None else [f"flat: {_joined(array.flat_over)}"]
    return ", ".join([f"dim {dim}: {_joined(axes)}" for dim, axes in array.dims] + flat) or "-"


def _joined(axes: SplitAxes) -> str:
    return " x ".join(axes) if isinstance(axes, tuple) else axes


def _array_items(commit: Commit) -> list[dict[str, object]]:
    return [
        {
            "name": array.name,
            "dtype": array.dtype,
            "shape": list(array.shape),
            "sizeBytes": array.num_bytes,
            "numElements": math.prod(array.shape),
            "files": commit.shard_keys(position),
        }
        for position, array in enumerate(commit.layout.arrays)
    ]


def _verdict(one: Found, report: Verification) -> str:
    if one.state == "foreign":
        return f"{one.key} foreign: no part of a checkpoint"
    name = f"checkpoint/{one.step}"
    read = f"{report.num_chunks} chunks, {size(report.num_bytes)} read" if report.deep else "arrays not read"
    how = f"{report.num_objects} files, {read}"
    if report.is_intact:
        return f"{name} ok ({how})"
    return f"{name} damaged: {_places(len(report.problems))} ({how})"


def _places(number: int) -> str:
    return f"{number} {'place' if number == 1 else 'places'}"


def _problem_listing(problems: Sequence[tuple[int | None, Problem]]) -> Listing:
    """Each with the step of its checkpoint, if it lies in one."""
    return Listing(
        kind="ProblemList",
        columns=(
            Column(name="step", align="right"),
            Column(name="kind"),
            Column(name="tensor"),
            Column(name="chunk", align="right"),
            Column(name="file"),
            Column(name="bytes"),
            Column(name="what"),
        ),
        rows=tuple(
            (
                str(step) if step is not None else "-",
                problem.kind,
                problem.array if problem.array is not None else "-",
                str(problem.chunk) if problem.chunk is not None else "-",
                problem.object_key,
                _span(problem),
                one_line(problem.message),
            )
            for step, problem in problems
        ),
    )


def _span(problem: Problem) -> str:
    """A dash where nothing is told of the place, as of a commit record, which is damaged as a whole."""
    end_bytes = problem.offset_bytes + problem.length_bytes
    return f"{problem.offset_bytes}-{end_bytes}" if problem.length_bytes else "-"


def _foreign_listing(foreign: Sequence[Found]) -> Listing:
    return Listing(
        kind="ForeignFileList",
        columns=(Column(name="file"), Column(name="what")),
        rows=tuple((one.key, one_line(one.reason)) for one in foreign),
    )


def _report_item(one: Found, report: Verification) -> dict[str, object]:
    return {
        "step": one.step,
        "writeId": one.write_id or None,
        "isIntact": report.is_intact,
        "isDeep": report.deep,
        "numFiles": report.num_objects,
        "numChunks": report.num_chunks,
        "numBytesRead": report.num_bytes,
        "problems": [_problem_item(problem, is_foreign=one.state == "foreign") for problem in report.problems],
    }


def _problem_item(problem: Problem, *, is_foreign: bool = False) -> dict[str, object]:
    return {
        "kind": "foreign" if is_foreign else problem.kind,
        "tensor": problem.array,
        "chunk": problem.chunk,
        "file": problem.object_key,
        "offsetBytes": problem.offset_bytes,
        "lengthBytes": problem.length_bytes,
        "message": problem.message,
    }
