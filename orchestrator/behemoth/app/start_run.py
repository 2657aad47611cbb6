"""What `behemoth run` decides before anything starts: whether it resumes the same run, and where its checkpoints
are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from behemoth.app.run_directory import Identity, RunDirectory, Term
from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Epoch, NodeId, RunUid
from behemoth.checkpoint.owner import Owner
from behemoth.spec.decode import decode_run
from behemoth.spec.document import difference, to_document
from behemoth.spec.run import TrainingRun
from behemoth.storage.open import is_nested, is_s3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """A run directory that is this run's, locked by this process."""

    directory: RunDirectory
    identity: Identity
    store_url: str
    drain_url: str | None = None
    """URL of the second store, where the run names one."""


Vet = Callable[[str, RunUid | None], None]


def claim(run: TrainingRun, path: Path, *, vet: Vet = lambda _url, _run_uid: None) -> RunPlace:
    """Opens and locks the directory for `run`. Raises Conflict when somebody runs there, and Invalid when it holds
    another run: the message then names each field that differs.

    `vet` checks each store of a run that has not begun yet, before the directory is bound to it: it is called with the
    store's URL and, when an earlier start was cut off, the uid of that one. What it raises leaves the directory free
    for a corrected run file. By default every store is accepted, which suits commands that only read."""
    _require_text(path.absolute(), "run directory")
    directory = RunDirectory(path)
    directory.open()
    try:
        identity = _identify(run, directory, vet)
        url = store_root(run, directory, identity)
        return RunPlace(directory=directory, identity=identity, store_url=url, drain_url=identity.drain)
    except BaseException:
        directory.close()
        raise


def begin_term(directory: RunDirectory, epoch: Epoch, port: int) -> None:
    """Writes the raised epoch durably; nobody acts under it before this returns."""
    directory.begin_term(Term(epoch=epoch, port=port, pid=os.getpid()))


def store_root(run: TrainingRun, directory: RunDirectory, identity: Identity) -> str:
    """Where this run's `commits/` and `steps/` are: in its own directory, or under its name in a store elsewhere. A
    relative path counts from the folder in which the run was first started, wherever it is resumed."""
    return identity.store or _named_store(run) or _own_store(directory)


def node_names(run: TrainingRun) -> list[NodeId]:
    """Logical nodes of an embedded cluster, in placement order, gang first."""
    return [NodeId(f"node-{number}") for number in range(run.nodes.count + run.nodes.spares)]


def refuse_copy(owner: Owner, here: Path) -> None:
    """Raises Conflict when `here` is a copy of the directory that the store names as its owner's, which is still there:
    both would act on that store as one run.

    A directory that was moved is no copy: nothing is left where it was."""
    first = Path(owner.directory)
    if first == here or not RunDirectory(first).is_of(owner.run_uid):
        return
    if os.path.samefile(first, here):
        return
    raise Conflict(
        f"run directory {here}: expected the only one of run/{owner.name}, got a copy of {first}",
        hint=f"go on with --dir {first}, or start a run of its own in an empty directory",
        code="run-copied",
    )


def _identify(run: TrainingRun, directory: RunDirectory, vet: Vet) -> Identity:
    identity = directory.identity()
    if identity is None or directory.is_beginning():
        store = _named_store(run)
        run_uid = None if identity is None else identity.run_uid
        drain, disk = _named_drain(run), run.checkpoint.local_disk
        stores = [store or _own_store(directory), *([drain] if drain is not None else [])]
        if disk is not None:
            _require_apart(disk.path, stores)
        vet(stores[0], run_uid)
        if drain is not None:
            _require_other(drain, stores[0])
            vet(drain, run_uid)
        identity = directory.found(run.name, store, drain=drain, run_uid=run_uid)
        directory.write_document(yaml.safe_dump(to_document(run), sort_keys=False))
        return identity
    former = decode_run(directory.read_document(), source=str(directory.document))
    changes = difference(former, run)
    if changes:
        listed = "; ".join(str(change) for change in changes[:8])
        raise Invalid(
            f"run directory {directory.path}: expected the run that began there, got another one: {listed}",
            hint="change the file back to resume, or start the new run elsewhere with --dir",
            code="run-differs",
        )
    return identity


def _named_store(run: TrainingRun) -> str | None:
    """The run's place in the store that its file names, seen from the present folder; None when it names none."""
    return None if run.checkpoint.store is None else _place_in(run.checkpoint.store, run.name)


def _named_drain(run: TrainingRun) -> str | None:
    """Likewise in the second store."""
    return None if run.checkpoint.drain is None else _place_in(run.checkpoint.drain.to, run.name)


def _place_in(url: str, name: str) -> str:
    if is_s3(url):
        place, mark, parameters = url.partition("?")
        return f"{place.rstrip('/')}/{name}{mark}{parameters}"
    path = Path(url, name).absolute()
    _require_text(path, "checkpoint store")
    return str(path)


def _require_other(drain: str, store: str) -> None:
    """Two names may lead to one place, and what lies within a store is lost with it. Raises Invalid."""
    if is_nested(drain, store):
        raise Invalid(
            f"spec.checkpoint.drain.to: expected a place outside {store}, the run's own store, got {drain}",
            hint="name a folder or a prefix on another device",
            code="drain-same",
        )


def _require_apart(disk: str, stores: Sequence[str]) -> None:
    """What a node copies to its own disk is no part of a store, and no store is deleted with it. Raises Invalid."""
    for store in stores:
        if is_nested(disk, store):
            raise Invalid(
                f"spec.checkpoint.local_disk.path: expected a place outside {store}, a store of the run, got {disk}",
                hint="name a folder on a disk of each node's own",
                code="disk-in-store",
            )


def _require_text(path: Path, what: str) -> None:
    """Records and messages to agents name it, and are text. Raises Invalid for a path that is none."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise Invalid(
            f"{what} {path}: expected a path of UTF-8, got other bytes in it",
            hint="rename the folder, or name another one",
            code="path",
        ) from error


def _own_store(directory: RunDirectory) -> str:
    return str(directory.checkpoints.absolute())
