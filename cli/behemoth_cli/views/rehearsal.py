"""What a rehearsed restore took."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, Page, Section, one_line
from behemoth_cli.views.checkpoints import mesh_text
from behemoth_cli.views.figures import ranks as rank_list
from behemoth_cli.views.figures import rate, seconds, size

if TYPE_CHECKING:
    from behemoth.checkpoint.commit_record import CommitRecord
    from behemoth.checkpoint.rehearsal import RankRehearsal, Rehearsal
    from behemoth.spec.mesh import Mesh


def rehearsal_page(record: CommitRecord, mesh: Mesh, found: Rehearsal, *, open_s: float) -> Page:
    """`mesh` is that of the restore; `open_s` is what record, index and metadata took, once."""
    name = f"checkpoint/{record.step}"
    verdict = "restored" if found.is_intact else "not restored"
    own = ", its own" if mesh == record.mesh else f", saved on {mesh_text(record.mesh)}"
    slowest = found.slowest
    pairs = (
        ("mesh", f"{mesh_text(mesh)}{own}"),
        ("ranks", f"{_ranks(found, mesh)}, one after the other"),
        ("held", size(found.held_bytes)),
        ("read", f"{size(found.read_bytes)}, {found.over_read:.2f} x what is held"),
        ("metadata", seconds(open_s)),
        ("seconds", f"{seconds(found.seconds)}, {rate(_rate(found.read_bytes, found.seconds))}"),
        ("slowest", f"rank {slowest.rank}, {seconds(slowest.seconds)} for {size(slowest.read_bytes)}"),
    )
    return Page(
        kind="RestoreRehearsal",
        name=name,
        sections=(
            Section(lines=(f"{name} {verdict}, and thrown away",)),
            Section(pairs=pairs),
            Section(title="Damage", listing=_damage(found)),
        ),
        body={
            "step": record.step,
            "writeId": record.write_id,
            "isIntact": found.is_intact,
            "mesh": {axis.name: getattr(mesh, axis.name) for axis in fields(mesh)},
            "isOwnMesh": mesh == record.mesh,
            "heldBytes": found.held_bytes,
            "readBytes": found.read_bytes,
            "overRead": found.over_read,
            "openSeconds": open_s,
            "seconds": found.seconds,
            "bytesPerSecond": _rate(found.read_bytes, found.seconds),
            "slowestRank": slowest.rank,
            "ranks": [_item(one) for one in found.ranks],
        },
    )


def _ranks(found: Rehearsal, mesh: Mesh) -> str:
    """How many of how many, and, where it is not all of them, which."""
    some = f" ({rank_list(one.rank for one in found.ranks)})" if len(found.ranks) < mesh.num_ranks else ""
    return f"{len(found.ranks)} of {mesh.num_ranks}{some}"


def _rate(num_bytes: int, elapsed_s: float) -> float | None:
    return num_bytes / elapsed_s if elapsed_s else None


def _damage(found: Rehearsal) -> Listing:
    return Listing(
        kind="DamageList",
        columns=(Column(name="rank", align="right"), Column(name="what")),
        rows=tuple((str(one.rank), one_line(one.damage)) for one in found.ranks if one.damage),
    )


def _item(one: RankRehearsal) -> dict[str, object]:
    return {
        "rank": one.rank,
        "heldBytes": one.held_bytes,
        "readBytes": one.read_bytes,
        "seconds": one.seconds,
        "damage": one.damage or None,
    }
