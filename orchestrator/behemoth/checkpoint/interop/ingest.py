"""Makes a committed checkpoint of arrays from elsewhere, a unit at a time; for imports and reshards.

It uses the same grid, proof and commit as a save, so that the result is a checkpoint like any other.
Where the arrays come from, and on which machine units are written, is the caller's business. Neighbours: `foreign`
(tensors of other programs), `units` and `unit_writer` (how they are written), `checkpoint.commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from behemoth.base.errors import BehemothError, Conflict, Invalid
from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.commit_log import commit_of, reject
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.discarding import discard_write
from behemoth.checkpoint.filling import least_bytes
from behemoth.checkpoint.interop.object_uploads import ObjectUploads
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.unit_writer import Written
from behemoth.checkpoint.interop.units import Units, units_of
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.owner import read_owner
from behemoth.checkpoint.receipt import Receipt
from behemoth.ports import ObjectStore, SavesTo
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef

TAKEN = "import-taken"
"""Code of the error for a step that has a checkpoint already."""
BLOCK_BYTES = 64 << 20
"""Bytes of a tensor that are held at a time. A transposed one is read once for each such block."""

_HINTS = {
    "array-name": "rename it by a map",
    "array-shape": "a checkpoint cannot hold it: leave it out by a map that has its name in SOURCE under drop: theirs",
}
"""Hints for tensors that a layout refuses, by the code of the error."""

Spread = Callable[[ObjectUploads], Iterable[Sequence[Written]]]
"""Writes all units on other threads or machines, to the given uploads; returns the results in any order."""


def import_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """The layout of a checkpoint of these tensors, on one rank. Raises Invalid for a name, dtype or shape that a
    checkpoint cannot hold, and for no tensor at all."""
    if not tensors:
        raise Invalid("import: expected at least one tensor, got none", code="import-empty")
    try:
        specs = [ArraySpec(name=name, dtype=tensor.dtype, shape=tensor.shape) for name, tensor in tensors.items()]
    except Invalid as error:
        raise Invalid(f"import: {error.message}", hint=_HINTS.get(error.code, error.hint), code=error.code) from error
    return with_close_chunks(Layout(mesh=Mesh(), arrays=tuple(specs)))


def import_units(layout: Layout, store: SavesTo) -> Units:
    """The units in which tensors are written to a store."""
    return units_of(layout, block_bytes=BLOCK_BYTES, least_bytes=partial(least_bytes, store))


def check_free(store: ObjectStore, step: Step, *, own: str = "") -> CommitRef | None:
    """None where a checkpoint may be written; that of the step where its write id begins with `own`, which is given for
    the writes of one request. Raises Conflict when the store belongs to a run, which would not know what it finds, or
    has the step from elsewhere. Reads."""
    _refuse_owned(store)
    standing = commit_of(store, step)
    if standing is None:
        return None
    if own and isinstance(standing, CommitRef) and standing.write_id.startswith(own):
        return standing
    got = f"write {standing.write_id}" if isinstance(standing, CommitRef) else "a record that cannot be read"
    raise Conflict(
        f"target store: expected no checkpoint of step {step}, got {got}, which something else has made",
        hint="name another store; an import may have another step",
        code=TAKEN,
    )


def write_checkpoint(
    store: SavesTo,
    candidate: Candidate,
    layout: Layout,
    spread: Spread,
    *,
    keeps_unfinished: bool = False,
) -> CommitRecord:
    """Have a checkpoint's units written, and commit it. Blocks for as long.

    Cut off, it leaves no checkpoint, and objects below the write's own prefix, which a run that takes the store
    removes; called again, with another write id, it starts over. After an error it has removed them, unless it
    `keeps_unfinished` for a caller who goes on there. Raises what `check_free` and `spread` do.
    """
    check_free(store, candidate.step)
    with _removed_on_failure(store, candidate, keeps_unfinished=keeps_unfinished):
        uploads = ObjectUploads(store, candidate.prefix, layout)
        for written in spread(uploads):
            for one in written:
                uploads.add(one)
        shards, spans = uploads.complete(), uploads.spans()
        check_free(store, candidate.step)  # a run may have taken the store since
        receipts = [
            Receipt(
                rank=Rank(rank),
                attempt=candidate.attempt,
                step=candidate.step,
                write_id=candidate.write_id,
                layout_digest=layout.digest,
                spans=spans if rank == 0 else (),
                shards=tuple(shards) if rank == 0 else (),
            )
            for rank in range(layout.mesh.num_ranks)
        ]
        record = commit(store, candidate, layout, receipts, previous=None)
        _take_back_if_owned(store, record)
        return record


def _refuse_owned(store: ObjectStore) -> None:
    owner = read_owner(store)
    if owner is not None:
        raise Conflict(
            f"target store: expected a store that belongs to no run, got that of run/{owner.name} in {owner.directory}",
            hint="name a store of its own",
            code="import-owned",
        )


def _take_back_if_owned(store: ObjectStore, record: CommitRecord) -> None:
    """A run that takes a store first says so, then reads which commits there are, and removes what belongs to none.
    So one that cannot have seen this commit is seen here: what it names may be gone."""
    try:
        _refuse_owned(store)
    except Conflict:
        reject(store, record.ref, "a run took the store while it was imported")
        raise


@contextmanager
def _removed_on_failure(store: SavesTo, candidate: Candidate, *, keeps_unfinished: bool) -> Iterator[None]:
    """Delete what was written after an error, unless the step has a commit of this write (its answer may have been
    lost) or a record that cannot be read."""
    try:
        yield
    except BaseException:
        if not keeps_unfinished:
            with suppress(BehemothError):
                discard_write(store, candidate.step, candidate.write_id)
        raise
