"""Effects: what the brain wants done. A closed union; each body applies them idempotently, guarded by the fence.

An effect says what shall be true, never how. The body that cannot apply one answers with evidence (ProvisionFailed,
SaveFailed), it never raises into the brain.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from behemoth.base.ids import NodeId, Slot, Step, WriteId
from behemoth.state.fence import Fence

Outcome = Literal["succeeded", "failed", "suspended", "cancelled"]


class CommitRef(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Names one committed checkpoint. `committed_us` is the time in its record, by the committer's clock: for people
    and for retention, never compared with another clock; 0 where it is not known, as in older journals."""

    step: Step
    write_id: WriteId
    size_bytes: int
    committed_us: int = 0


class _Effect(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    fence: Fence


class Provision(_Effect, frozen=True, kw_only=True):
    """Let there be an agent of this incarnation on the node. Incarnations of a node only rise."""

    node: NodeId
    incarnation: int


class Evict(_Effect, frozen=True, kw_only=True):
    """End the agent of this incarnation by force and never listen to it again."""

    node: NodeId
    incarnation: int
    reason: str


class Place(_Effect, frozen=True, kw_only=True):
    """The gang's first placement: `holders[slot]` holds that slot. No node twice."""

    holders: tuple[NodeId, ...]


class Replace(_Effect, frozen=True, kw_only=True):
    """`slot` passes from `node` to `spare`."""

    slot: Slot
    node: NodeId
    spare: NodeId
    reason: str


class Start(_Effect, frozen=True, kw_only=True):
    """Start the attempt named by the fence on the present holders; workers of older attempts end first.

    `restore` is the commit to restore, None for a fresh beginning. The body knows the holders from Place and Replace,
    so that a restart costs the brain O(changed), not O(nodes). `dump_stacks`: the old workers hang, so their Python
    stacks are wanted before they die."""

    restore: CommitRef | None
    reason: str
    dump_stacks: bool = False


class Stop(_Effect, frozen=True, kw_only=True):
    """End all workers of the attempt, by force; agents stay. `dump_stacks`: as in Start."""

    reason: str
    dump_stacks: bool = False


class Save(_Effect, frozen=True, kw_only=True):
    """Every rank saves when it has completed `step`, which none has passed. When `is_last`, each waits there for
    Agree, saves, and ends with exit code 0."""

    step: Step
    write_id: WriteId
    is_last: bool = False


class Agree(_Effect, frozen=True, kw_only=True):
    """All ranks know of the last save: those that wait at its step may go through with it."""

    write_id: WriteId


class Commit(_Effect, frozen=True, kw_only=True):
    """All receipts are in: prove and commit."""

    step: Step
    write_id: WriteId


class Abort(_Effect, frozen=True, kw_only=True):
    """Give this write up; ranks that wait for it go on, what it wrote is rubbish."""

    write_id: WriteId
    reason: str


class Reject(_Effect, frozen=True, kw_only=True):
    """This commit did not restore: mark it so that nobody takes it for good again."""

    commit: CommitRef
    reason: str


class Delete(_Effect, frozen=True, kw_only=True):
    """Retention no longer wants these commits."""

    commits: tuple[CommitRef, ...]


class Close(_Effect, frozen=True, kw_only=True):
    """The run is over for this body: agents leave, the summary is written."""

    outcome: Outcome
    reason: str


Effect: TypeAlias = (
    Provision | Evict | Place | Replace | Start | Stop | Save | Agree | Commit | Abort | Reject | Delete | Close
)
