"""What `behemoth run` asks of a store before its run may begin there, and what it leaves there at the end.

Until it is sure that the store is this run's it only reads. Neighbours: `run` calls it, `second_store` does the same
for the store below; `behemoth.checkpoint.owner` says whose a store is.
"""

from __future__ import annotations

import contextlib

from behemoth.app.checkpoint_desk import remove_rubbish, unsure_writes
from behemoth.app.lineage import require_lineage
from behemoth.app.start_run import RunPlace, refuse_copy
from behemoth.base.ids import RunUid
from behemoth.checkpoint.owner import Owner, refuse_other, take
from behemoth.ports import SavesTo, UploadsParts
from behemoth.state.observation import Observation
from behemoth.storage.open import open_store
from behemoth.storage.probe import probe
from behemoth.storage.probe_uploads import probe_uploads


def vet(store_url: str, run_uid: RunUid | None) -> None:
    """Raises Conflict when the store of a run that has yet to begin belongs to another."""
    with contextlib.closing(open_store(store_url)) as store:
        refuse_other(store, run_uid, url=store_url)


def settle(place: RunPlace, store: SavesTo, former: Observation | None) -> None:
    """Only reads until it is sure that this is the run's store; then tries it out and takes it."""
    url, identity = place.store_url, place.identity
    owner = refuse_other(store, identity.run_uid, url=url)
    if owner is not None and identity.store is not None:  # a copy with its own store harms nobody
        refuse_copy(owner, place.directory.path.absolute())
    require_lineage(store, former, url=url)
    if owner is not None:  # rubbish of saves that were cut off may be what fills the disk
        remove_rubbish(store, unsure_writes(former))
    try_out(store, url)
    take(store, owner_of(place), url=url)


def try_out(store: SavesTo, url: str) -> None:
    if isinstance(store, UploadsParts):
        probe_uploads(store, url=url)
    else:
        probe(url)


def owner_of(place: RunPlace) -> Owner:
    identity = place.identity
    return Owner.of_run(identity.run_uid, name=identity.name, directory=str(place.directory.path.absolute()))


def clean_up(place: RunPlace, store: SavesTo, observation: Observation | None) -> None:
    """Raises Conflict when the place has become another run's meanwhile: its rubbish and its summary are not ours."""
    refuse_other(store, place.identity.run_uid, url=place.store_url)
    remove_rubbish(store, unsure_writes(observation))
