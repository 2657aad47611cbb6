"""The services of a node that a gang uses; they outlive every attempt.

Values only; `main` builds them at the first welcome and takes them down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from behemoth.agent.arenas import Arenas
from behemoth.agent.copies import Copies
from behemoth.agent.forkclient import ForkClient
from behemoth.agent.keeping import Keeping
from behemoth.agent.output import Output
from behemoth.agent.saves import Saves
from behemoth.agent.storelink import StoreLink
from behemoth.wire.reports import Report
from behemoth.wire.setup import Setup


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeServices:
    """The services of one node. `setup`: the run as the first coordinator described it."""

    setup: Setup
    forks: ForkClient
    store: StoreLink
    output: Output
    arenas: Arenas
    saves: Saves
    copies: Copies
    keeping: Keeping
    send: Callable[[Report], None]
    beat: Callable[[], None]
    """Send a beat at once."""
