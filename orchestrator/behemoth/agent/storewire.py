"""What the agent and its store process say to each other: jobs down, answers up.

Every job carries all that it needs, the descriptor of the staging memory beside it, so that a store process that was
killed is replaced by a fresh one without ceremony. The neighbour `forkwire` is the same for the fork server.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from behemoth.base.ids import Attempt, NodeId, Rank, RunUid, Step, WriteId
from behemoth.wire.messages import PeerPlace


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    job: int
    """Pairs an answer with its job."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The committed checkpoint that a rank shall get back. `held_in`: the generation that should hold it still;
    `spare`: the generation to fill from the store when it does not. `must_read`: fill it in any case, since what the
    rank was pointed at before was damaged."""

    step: Step
    write_id: WriteId
    held_in: int | None
    spare: int
    must_read: bool = False


class PeerService(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is to its peers. `key` is a secret."""

    run_uid: RunUid
    node: NodeId
    key: str


class OpenStore(_Message, frozen=True, kw_only=True):
    """First order; not answered. `threads` bounds the threads of all jobs together. With `peers` it carries the
    descriptor of a socket that listens for them."""

    url: str
    threads: int
    num_ranks: int
    peers: PeerService | None = None


class SeePeers(_Message, frozen=True, kw_only=True):
    """The gang as it is now, and this node's slot in it; not answered."""

    slot: int
    nodes: tuple[NodeId, ...]
    places: tuple[PeerPlace, ...]
    """By slot, as `nodes`."""


class Prepare(_Message, frozen=True, kw_only=True):
    """Make a rank's staging memory ready, and the checkpoint in it. Carries the memory's descriptor. `is_new`: the
    memory was never formatted. `intake`: as the program declared it."""

    rank: Rank
    layout: bytes
    is_new: bool
    source: Source | None
    intake: bytes = b""


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
    """Give up the write of `job`; it is answered all the same."""


StoreOrder: TypeAlias = OpenStore | SeePeers | Prepare | Write | Cancel


class Prepared(_Message, frozen=True, kw_only=True):
    """The memory is ready; the checkpoint came from `origin` and lies in `generation`. Of origin `files` it lies in no
    generation: the rank shall read the files below `folder` itself. `left_out`: arrays, counted in the layout's order,
    for which the checkpoint has nothing; the generation has zeros there, so it is not that checkpoint."""

    generation: int | None
    origin: Literal["memory", "store", "files", "nothing"]
    folder: str = ""
    left_out: tuple[int, ...] = ()


class Written(_Message, frozen=True, kw_only=True):
    """The rank's bytes are durable."""

    receipt: bytes


class Failed(_Message, frozen=True, kw_only=True):
    """The job was given up. `is_corrupt`: what the store holds is bad, trying again is useless."""

    reason: str
    is_corrupt: bool
    is_unfit: bool = False
    """What the store holds is of another model."""


StoreReport: TypeAlias = Prepared | Written | Failed

STORE_ORDERS: Final = msgspec.msgpack.Decoder(StoreOrder)
STORE_REPORTS: Final = msgspec.msgpack.Decoder(StoreReport)
