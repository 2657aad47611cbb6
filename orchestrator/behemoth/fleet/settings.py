"""What a coordinator's server is told when it is built."""

from __future__ import annotations

from dataclasses import dataclass

from behemoth.base.ids import Epoch, RunUid
from behemoth.wire.setup import Setup


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What one coordinator needs to serve one run."""

    run_uid: RunUid
    epoch: Epoch
    setup: Setup
    beat_interval_us: int
    tick_interval_us: int
    """How often late agents and progress are told."""
    reconnect_us: int
    """How long a broken connection may take to come back before its node counts as lost; 0: at once."""
