"""What `decide` answers: what shall be done, what is so, and when to look again."""

from __future__ import annotations

import msgspec

from behemoth.state.effect import Effect
from behemoth.state.status import RunStatus


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The body journals `Decided(effects)` durably, folds it, then applies the effects in this order.

    `status` is the run as it stands once they are folded. `wake_at_us` is the next time at which silence alone
    changes something, None when nothing is waited for: the body folds a Tick then, or earlier.
    """

    effects: tuple[Effect, ...]
    status: RunStatus
    wake_at_us: int | None
