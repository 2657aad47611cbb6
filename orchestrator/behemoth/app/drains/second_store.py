"""The second store of a run in the leader: opened, settled, fed, and asked at the end what is in it.

Joins the parts that know one thing each: `fetching`, `drainer`, `link`. What happens there becomes events, and the
file `drain.json` for those who only look. The neighbour is `wiring.run`, which says when.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from behemoth.agent.child import Child
from behemoth.app.drains.drainer import Drainer, DrainNews
from behemoth.app.drains.fetching import Fetched, Progress, fetch_newest
from behemoth.app.drains.link import ProcessLink
from behemoth.app.drains.messages import Drained, Settings
from behemoth.app.drains.process import reject_too
from behemoth.app.run_directory import DrainState, RunDirectory
from behemoth.app.start_run import RunPlace, refuse_copy
from behemoth.app.summary import DrainTable
from behemoth.base.clock import Clock
from behemoth.base.errors import BehemothError, Denied, Timeout, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.owner import Owner, refuse_other, take
from behemoth.policy.retention import Retention
from behemoth.ports import SavesTo
from behemoth.spec.run import TrainingRun
from behemoth.spec.stores import Drain
from behemoth.state.effect import CommitRef

Told = Callable[[str, str, bool], None]
"""Reason, message, and whether it is a warning; from any thread."""


class SecondStore:
    """Lives as long as the process that leads. `store` and `below` are the first and the second store."""

    def __init__(
        self,
        spec: Drain,
        settings: Settings,
        *,
        store: SavesTo,
        below: SavesTo,
        directory: RunDirectory,
        clock: Clock,
        tell: Told,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._store = store
        self.below = below
        self._directory = directory
        self._clock = clock
        self._tell = tell
        self._drainer: Drainer | None = None
        self._state = DrainState(url=settings.target, step=None)

    def fetch(self, rejected: Collection[WriteId], progress: Progress) -> None:
        """Before anything else: the first store gets back what it has lost. Raises what `fetch_newest` does, and
        Conflict when one of the two is another run's, or the second that of the directory of which this one is a
        copy: a first store within the directory was copied with it, the second was not."""
        url, run_uid = self._settings.target, self._settings.run_uid
        refuse_other(self._store, run_uid, url=self._settings.source)
        owner = refuse_other(self.below, run_uid, url=url)
        if owner is not None:
            refuse_copy(owner, self._directory.path.absolute())
        found = fetch_newest(
            self.below,
            self._store,
            url=url,
            rejected=rejected,
            threads=self._settings.threads,
            progress=progress,
        )
        self._tell_fetched(found)

    def open(self, owner: Owner, start: Callable[[], Child]) -> Drainer:
        """Make the second store this run's, and begin to drain; `start` starts the process. Once the first store is
        settled."""
        url = self._settings.target
        take(self.below, owner, url=url)
        reject_too(self._store, self.below)
        newest = latest(self.below)
        self._write(DrainState(url=url, step=None if newest is None else newest.step))
        link = ProcessLink(self._settings, start=start)
        self._drainer = Drainer(link, every=self._spec.every, below=newest, tell=self.heard)
        return self._drainer

    def finish(self, last: CommitRef | None, *, is_required: bool, cancelled: Callable[[], bool]) -> DrainTable:
        """Wait, for as long as the run file allows, until the last commit is below. Blocks."""
        assert self._drainer is not None
        limit_s = self._spec.limit.total_seconds()
        is_complete = last is None or self._drainer.finish(last, limit_s=limit_s, cancelled=cancelled)
        below = self._drainer.below
        return DrainTable(
            url=self._settings.target,
            step=None if below is None else below.step,
            is_complete=is_complete,
            is_required=is_required,
            trouble="" if is_complete else self._state.trouble or f"not done within {limit_s:g} s",
        )

    def close(self) -> None:
        """Ends the process. Idempotent."""
        if self._drainer is not None:
            self._drainer.close()

    def heard(self, news: DrainNews) -> None:
        """What came of a try; on the drainer's thread."""
        step = news.commit.step
        if news.drained is not None:
            self._heard_drained(step, news.drained)
            return
        assert news.error is not None
        trouble = f"step {step}: {news.error.message}" + (f"; {news.error.hint}" if news.error.hint else "")
        if trouble == self._state.trouble:
            return  # a store that is away for a day is one event, not one a minute
        self._write(msgspec.structs.replace(self._state, trouble=trouble))
        then = "given up" if news.is_given_up else "tried again"
        self._tell("DrainFailed", f"checkpoint of step {step} is not drained, {then}: {news.error.message}", True)

    def _heard_drained(self, step: Step, drained: Drained) -> None:
        url, num_bytes, seconds = self._settings.target, drained.num_bytes, drained.seconds
        was_untidy = bool(drained.untidy) and drained.untidy == self._state.trouble
        at_us = self._clock.now_us()
        self._write(
            DrainState(url=url, step=step, at_us=at_us, num_bytes=num_bytes, seconds=seconds, trouble=drained.untidy)
        )
        mib = num_bytes / (1 << 20)
        rate = f"{mib / seconds:.1f} MiB/s" if seconds else "at once"
        message = f"checkpoint of step {step} drained to {url}"
        self._tell("Drained", f"{message}: {mib:.1f} MiB in {seconds:.1f} s, {rate}", False)
        if drained.untidy and not was_untidy:
            self._tell("DrainFailed", f"what retention gives up in {url} stays there: {drained.untidy}", True)

    def _tell_fetched(self, found: Fetched) -> None:
        for error in found.damaged:
            self._tell("UnusableCheckpoint", f"{self._settings.target}: {error.message}", True)
        if found.commit is not None:
            message = f"checkpoint of step {found.commit.step} fetched from {self._settings.target}"
            self._tell("Fetched", f"{message}: the first store had none as new", False)

    def _write(self, state: DrainState) -> None:
        """For people only: a full disk does not end a drain."""
        self._state = state
        try:
            self._directory.write_drain(state)
        except BehemothError as error:
            self._tell("DrainFailed", f"what is drained cannot be noted: {error.message}", True)


def last_commit(store: SavesTo, committed: Sequence[CommitRef]) -> CommitRef | None:
    """What a run must not end without in its second store. `committed` is what it knows of, oldest first: that counts
    where the store shows nothing, since one that is away must not pass for one without checkpoints."""
    known = committed[-1] if committed else None
    try:
        newest = latest(store)
    except (Unavailable, Timeout, Denied):
        return known
    return known if newest is None else newest


def drain_settings(run: TrainingRun, spec: Drain, place: RunPlace, url: str) -> Settings:
    """What the process is told; `url` is that of the second store."""
    kept = spec.retention
    return Settings(
        source=place.store_url,
        target=url,
        run_uid=place.identity.run_uid,
        threads=run.checkpoint.threads,
        rate=spec.rate,
        retention=Retention(
            keep_last=kept.keep_last, every_steps=kept.every_steps, hourly=kept.hourly, daily=kept.daily
        ),
    )
