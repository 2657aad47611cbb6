"""The fence that every effect and every command carries, and what makes one stale.

A body refuses an effect whose fence is older than what it has seen: so a slow coordinator, a delayed frame or a
zombie agent can repeat itself without harm.
"""

from __future__ import annotations

import msgspec

from behemoth.base.ids import Attempt, Epoch, RunUid


class Fence(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Who speaks: the run, the coordinator's term, and the start of the gang that is meant.

    `epoch` orders coordinators, `attempt` orders gang starts. Both only rise.
    """

    run_uid: RunUid
    epoch: Epoch
    attempt: Attempt

    def is_stale_against(self, seen: Fence) -> bool:
        """True when `self` comes from another run, an older coordinator or an older start than `seen`."""
        return self.run_uid != seen.run_uid or self.epoch < seen.epoch or self.attempt < seen.attempt
