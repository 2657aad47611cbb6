"""The second store of `behemoth run`: opened, settled, and given the process that drains to it.

Neighbours: `settling` does the same for the first store, `drain` is that process; `behemoth.app.drains.second_store`
has what is done with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial

from behemoth.agent.child import Child
from behemoth.app.drains.drainer import Drainer
from behemoth.app.drains.second_store import SecondStore, drain_settings
from behemoth.app.event_log import EventLog
from behemoth.app.start_run import RunPlace
from behemoth.base.clock import WallClock
from behemoth.ports import SavesTo
from behemoth.spec.run import TrainingRun
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store
from behemoth.wiring.posting import post
from behemoth.wiring.settling import owner_of, try_out


def open_second(
    run: TrainingRun,
    place: RunPlace,
    store: SavesTo,
    events: EventLog,
    *,
    clock: WallClock,
    stack: contextlib.AsyncExitStack,
) -> SecondStore | None:
    """None for a run without one. Its news go to `events` on the event loop that runs now; `stack` closes it."""
    spec = run.checkpoint.drain
    if spec is None or place.drain_url is None:
        return None
    running = asyncio.get_running_loop()
    below = open_store(place.drain_url)
    stack.callback(below.close)
    return SecondStore(
        spec,
        drain_settings(run, spec, place, place.drain_url),
        store=store,
        below=below,
        directory=place.directory,
        clock=clock,
        tell=lambda reason, message, is_warning: post(
            running, lambda: (events.warn if is_warning else events.note)(reason, message)
        ),
    )


def fetching(on_phase: Callable[[str], None]) -> Callable[[CommitRef, int, int], None]:
    """Tells each tenth of what is fetched, on the event loop that runs now."""
    running, told = asyncio.get_running_loop(), [-1]

    def progress(commit: CommitRef, done_bytes: int, total_bytes: int) -> None:
        tenth = 10 * done_bytes // total_bytes
        if tenth > told[0]:
            told[0] = tenth
            text = f"fetching the checkpoint of step {commit.step} from the second store, {10 * tenth}%"
            post(running, lambda: on_phase(text))

    return progress


def settle_second(place: RunPlace, second: SecondStore) -> Drainer:
    """Once the first store is settled, whose rejections it needs."""
    assert place.drain_url is not None
    try_out(second.below, place.drain_url)
    start = partial(Child.start, "behemoth.wiring.drain", environment=os.environ, own_session=True)
    return second.open(owner_of(place), start)
