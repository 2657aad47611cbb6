"""How long things take in the model, one number each, so that a scenario states them and nothing hides in code.

Defaults are a small local run. `scenario` holds those of a giant gang, with their sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations in microseconds of virtual time. Every one is what the model takes when nothing goes wrong."""

    provision_us: int = 2_000_000
    """From Provision to the agent's handshake, on a machine that is up."""
    refuse_us: int | None = 1_000_000
    """A runtime that refuses says ProvisionFailed after this long when the machine is down. None: it keeps the
    wish and starts the agent when the machine is back, as a pod that stays pending."""
    start_us: int = 1_000_000
    """From Start to every worker up."""
    restore_us: int = 500_000
    first_step_us: int = 1_500_000
    step_us: int = 1_000_000
    command_us: int = 20_000
    """From an effect to the ranks."""
    stage_us: int = 100_000
    """How long the ranks stand for a save."""
    write_us: int = 2_000_000
    commit_us: int = 50_000
    last_leaves_when: Literal["staged", "written"] = "written"
    """When the ranks of a last save end: as soon as their copy is in memory, or when all of it is written."""
    exit_report_us: int = 50_000
    loss_report_us: int = 500_000
    """From a machine's end to NodeLost (closed sockets and the reconnect time)."""
    beat_us: int = 1_000_000
    report_us: int = 10_000_000
    """Longest time between two reports of progress while the gang makes steps."""
