"""What an export or an import has done, or would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from behemoth.checkpoint.records import RANKS_ARRAY
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES
from behemoth_cli.out.table import Column, Listing, Page, Section
from behemoth_cli.views.figures import axes_text, size

if TYPE_CHECKING:
    from behemoth.checkpoint.interop.export_plan import ExportPlan
    from behemoth.checkpoint.interop.tensors import Tensor
    from behemoth.checkpoint.layout import Layout
    from behemoth.checkpoint.opened import Commit


def export_page(plan: ExportPlan, *, step: int, target: str, kept: Sequence[str], is_done: bool) -> Page:
    """`kept` are the files that an earlier try had left whole."""
    what = f"{len(plan.files)} {'file' if len(plan.files) == 1 else 'files'} of {size(plan.size_bytes)}"
    again = f", {len(kept)} of them there already" if kept else ""
    verb = "exported" if is_done else "would be exported"
    files = [
        {"file": file.name, "numTensors": len(file.tensors), "sizeBytes": file.size_bytes, "isKept": file.name in kept}
        for file in plan.files
    ]
    return Page(
        kind="CheckpointExport",
        name=f"checkpoint/{step}",
        sections=(
            Section(lines=(f"checkpoint/{step} {verb} to {target}: {plan.num_tensors} tensors, {what}{again}",)),
            Section(listing=_file_listing(files)),
        ),
        body={"step": step, "folder": target, "isDone": is_done, "numTensors": plan.num_tensors, "files": files},
    )


def import_page(
    layout: Layout, *, step: int, source: str, url: str, write_id: str | None, is_kept: bool = False
) -> Page:
    """`write_id` is None for what was only looked at; it `is_kept` where an earlier call had committed it."""
    num_bytes = sum(array.num_bytes for array in layout.arrays)
    verb = _told("imported", write_id, is_kept=is_kept)
    line = f"checkpoint/{step} {verb} into {url} from {source}: {len(layout.arrays)} arrays of {size(num_bytes)}"
    return Page(
        kind="CheckpointImport",
        name=f"checkpoint/{step}",
        sections=(Section(lines=(line,)),),
        body={
            "step": step,
            "source": source,
            "url": url,
            "writeId": write_id,
            "isKept": is_kept,
            "sizeBytes": num_bytes,
            "arrays": _array_rows(layout),
        },
    )


def reshard_page(
    commit: Commit,
    layout: Layout,
    *,
    source: str,
    url: str,
    again_bytes: int,
    write_id: str | None,
    is_kept: bool = False,
) -> Page:
    """`layout` is that of the result; `write_id` and `is_kept` as for `import_page`. `again_bytes` of what was saved
    are read twice, for scales."""
    record, num_bytes = commit.record, sum(array.num_bytes for array in layout.arrays)
    verb = _told("resharded", write_id, is_kept=is_kept)
    dense, expert = axes_text(layout.mesh, DENSE_AXES), axes_text(layout.mesh, EXPERT_AXES)
    lines = [
        f"checkpoint/{record.step} {verb} into {url} from {source}: {len(layout.arrays)} arrays of {size(num_bytes)}",
        f"mesh {dense}; experts {expert}",
    ]
    has_records = RANKS_ARRAY in layout.positions
    if has_records and layout.mesh.num_ranks != record.mesh.num_ranks:
        lines.append(
            f"the ranks' own records are blank: they are of {record.mesh.num_ranks} ranks, not of "
            f"{layout.mesh.num_ranks}; a restore on another mesh has none either"
        )
    if again_bytes:
        lines.append(f"read twice: {size(again_bytes)}, of blocks with one scale each that are too large to be held")
    return Page(
        kind="CheckpointReshard",
        name=f"checkpoint/{record.step}",
        sections=(Section(lines=tuple(lines)),),
        body={
            "step": record.step,
            "source": source,
            "url": url,
            "writeId": write_id,
            "isKept": is_kept,
            "sizeBytes": num_bytes,
            "readAgainBytes": again_bytes,
            "mesh": {axis: layout.mesh.size(axis) for axis in (*DENSE_AXES, *EXPERT_AXES)},
            "arrays": _array_rows(layout),
        },
    )


def tensor_listing(tensors: Mapping[str, Tensor]) -> Listing:
    """One row each, for a look before an export."""
    return Listing(
        kind="TensorList",
        columns=(Column(name="tensor"), Column(name="dtype"), Column(name="shape")),
        rows=tuple(
            (name, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar") for name, tensor in tensors.items()
        ),
    )


def _told(verb: str, write_id: str | None, *, is_kept: bool) -> str:
    if is_kept:
        return f"was {verb} before"
    return verb if write_id is not None else f"would be {verb}"


def _array_rows(layout: Layout) -> list[Mapping[str, object]]:
    return [
        {"name": array.name, "dtype": array.dtype, "shape": list(array.shape), "sizeBytes": array.num_bytes}
        for array in layout.arrays
    ]


def _file_listing(files: Sequence[Mapping[str, object]]) -> Listing:
    return Listing(
        kind="FileList",
        columns=(Column(name="file"), Column(name="tensors", align="right"), Column(name="bytes", align="right")),
        rows=tuple((str(file["file"]), str(file["numTensors"]), str(file["sizeBytes"])) for file in files),
    )
