"""What the agent and its store process say to each other: jobs down, answers up.

Every job carries all that it needs, the descriptor of the staging memory beside it, so that a store process that was
killed is replaced by a fresh one without ceremony. The neighbour `forkwire` is the same for the fork server.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from behemoth.base.hidden import repr_without
from behemoth.base.ids import Attempt, NodeId, Rank, RunUid, Slot, Step, WriteId
from behemoth.wire.commands import PeerPlace
from behemoth.wire.setup import LocalDisk, ShareReads


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    job: int
    """Pairs an answer with its job."""


class RestoreSource(msgspec.Struct, frozen=True, kw_only=True):
    """The committed checkpoint that a rank shall get back. `held_in`: the generation that should hold it still;
    `spare`: the generation to fill when it does not. `must_read`: fill it in any case, and check every byte, since what
    the rank was pointed at before was damaged."""

    step: Step
    write_id: WriteId
    held_in: int | None
    spare: int
    must_read: bool = False
    holders: tuple[Slot, ...] = ()
    """Slots whose nodes may have a copy in their memory, likeliest first."""
    record_bytes: int = 0
    """Size of the commit record, as the coordinator told it; 0: unknown."""


class PeerService(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is to its peers. `key` is a secret."""

    run_uid: RunUid
    node: NodeId
    key: str
    rate_bytes_per_s: int | None
    """For copies of other nodes' checkpoints; None: no limit."""

    def __repr__(self) -> str:
        return repr_without(self, "key")


class DiskService(msgspec.Struct, frozen=True, kw_only=True):
    """The node's own disk, and the folder below its path that is this node's in this run."""

    disk: LocalDisk
    folder: str
    run_uid: RunUid


class OpenStore(_Message, frozen=True, kw_only=True):
    """First order; not answered. `threads` bounds the threads of all jobs together. With `peers` it carries the
    descriptor of a socket that listens for them. `run_name`: as commits of this run have it."""

    url: str
    threads: int
    num_ranks: int
    run_name: str = ""
    peers: PeerService | None = None
    share_reads: ShareReads = "never"
    """Whether each part of a checkpoint is read from the store by one node and passed on."""
    disk: DiskService | None = None


class SeePeers(_Message, frozen=True, kw_only=True):
    """The gang as it is now, and this node's slot in it; not answered."""

    slot: int
    nodes: tuple[NodeId, ...]
    places: tuple[PeerPlace, ...]
    """By slot, as `nodes`."""


class ShareMemory(_Message, frozen=True, kw_only=True):
    """Memory of a rank that a store process before this one knew, so that peers find what is in it; not answered.
    Carries its descriptor. `is_copy`: of another node's rank."""

    rank: Rank
    is_copy: bool


class KeepCopies(_Message, frozen=True, kw_only=True):
    """All memory for copies of other ranks is given up; not answered."""

    ranks: tuple[Rank, ...]


class Pull(_Message, frozen=True, kw_only=True):
    """Copy a committed write of another node's rank out of the memory of the node in `slot`. Carries the descriptor of
    the memory for it, which is formatted if it never was."""

    rank: Rank
    layout: bytes
    slot: Slot
    write_id: WriteId
    step: Step


class KeepOnDisk(_Message, frozen=True, kw_only=True):
    """Copy a committed write of one of the node's ranks from its memory to the node's own disk. Carries the memory's
    descriptor."""

    rank: Rank
    layout: bytes
    write_id: WriteId
    step: Step


class ClearDisk(_Message, frozen=True, kw_only=True):
    """Remove what this node has on its own disk: the run is over, for good."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Most bytes of staging memory on this node, and the ranks that it is for: the node's own, and those of which it
    holds copies."""

    limit_bytes: int
    own: tuple[Rank, ...]
    copies: tuple[Rank, ...]


class Prepare(_Message, frozen=True, kw_only=True):
    """Make a rank's staging memory ready, and the checkpoint in it. Carries the memory's descriptor. `is_new`: the
    memory was never formatted. `intake`: as the program declared it. `budget`: None where memory is not bounded."""

    rank: Rank
    layout: bytes
    is_new: bool
    source: RestoreSource | None
    intake: bytes = b""
    budget: Budget | None = None


class Write(_Message, frozen=True, kw_only=True):
    """Write what `generation` holds. Carries the memory's descriptor. `following`: sequence of a filling that is still
    under way, whose bytes are written as they come. `updated_step`: the last step in which the program announced an
    update; `frozen`: the arrays, counted in the layout's order, that it declared not to move."""

    rank: Rank
    layout: bytes
    generation: int
    attempt: Attempt
    step: Step
    write_id: WriteId
    following: int | None = None
    updated_step: Step | None = None
    frozen: tuple[int, ...] = ()


class Cancel(_Message, frozen=True, kw_only=True):
    """Give up the write or the copy of `job`; it is answered all the same."""


StoreOrder: TypeAlias = (
    OpenStore | SeePeers | ShareMemory | KeepCopies | Pull | KeepOnDisk | ClearDisk | Prepare | Write | Cancel
)


class Prepared(_Message, frozen=True, kw_only=True):
    """The memory is ready; the checkpoint came from `origin` and lies in `generation`. Of origin `several` parts of it
    came from places of different kinds, such as from the store what no peer's memory had. Of origin `files` it lies in
    no generation: the rank shall read the files below `folder` itself; `is_cold`: the page cache holds little of them.
    `left_out`: arrays, counted in the layout's order, for which the checkpoint has nothing; the generation has zeros
    there, so it is not that checkpoint."""

    generation: int | None
    origin: Literal["memory", "peer", "disk", "several", "store", "files", "nothing"]
    folder: str = ""
    is_cold: bool = False
    left_out: tuple[int, ...] = ()
    peer_bytes: int = 0
    disk_bytes: int = 0
    store_bytes: int = 0
    """What was read for it; of origin `files`, with what the rank is about to read."""
    disk_trouble: str = ""
    """Why a copy on the node's own disk, which was there and was wanted, could not be read."""
    missed: str = ""
    """Why the nearer places that were asked did not have it all, when something came from the store."""


class Pulled(_Message, frozen=True, kw_only=True):
    """The copy is whole, and every byte of it checked."""

    num_bytes: int


class KeptOnDisk(_Message, frozen=True, kw_only=True):
    """The copy is durable; 0 bytes when it had been before."""

    num_bytes: int


class DiskCleared(_Message, frozen=True, kw_only=True):
    """Nothing of this node in this run is on its own disk any more."""


class Written(_Message, frozen=True, kw_only=True):
    """The rank's bytes are durable."""

    receipt: bytes


class Failed(_Message, frozen=True, kw_only=True):
    """The job was given up. `is_corrupt`: what the store holds is bad, trying again is useless."""

    reason: str
    is_corrupt: bool
    is_unfit: bool = False
    """What the store holds is of another model."""
    code: str = ""
    """Code of the error; empty when the store process died."""
    is_over_budget: bool = False
    """No checkpoint is to blame: the program declares more than the node may hold."""


StoreReport: TypeAlias = Prepared | Pulled | KeptOnDisk | DiskCleared | Written | Failed

STORE_ORDERS: Final = msgspec.msgpack.Decoder(StoreOrder)
STORE_REPORTS: Final = msgspec.msgpack.Decoder(StoreReport)
