"""Runs that use a real S3 server through a proxy, which keeps one request so that whoever sent it can be killed or
stopped at exactly that moment. The neighbours are `kill_stage`, the run, and `fault_proxy`, which keeps requests.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.paths import write_of_key
from behemoth.checkpoint.verify import verify
from behemoth.ports import UploadsParts
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store
from behemoth.testing.leftovers import Found, Role
from fault.kill_stage import KillStage, spec, staged
from servers.askers import asker
from servers.fault_proxy import Fault, FaultProxy, Held
from servers.s3_server import BUCKET, S3Server

STEPS = 40
SAVE_LIMIT = "10s"
COMPLETION = "uploadId="
"""In the target of the POST that makes one object of the parts; that of the one that begins an upload has `uploads`."""
PART = "partNumber="
COMMIT = "/commits/"
_HERE = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run of `two_parts` with a place in the bucket, which this process reads past the proxy."""

    stage: KillStage
    proxy: FaultProxy
    place: str

    def hold(self, fault: Fault) -> Held:
        """The next such request, once somebody has made it."""
        self.proxy.plan(fault)
        kept: list[Held] = []

        def has_come() -> bool:
            kept.extend(self.proxy.held_now())
            return bool(kept)

        self.stage.until(has_come, f"{fault.method} of {fault.part}")
        return kept[0]

    def sender(self, held: Held, role: Role) -> Found:
        """The process of this role that sent it, or below which it was sent."""
        living = {one.pid: one for one in self.stage.living()}
        found = living.get(asker(held.client_port, living) or 0)
        while found is not None and found.role != role:
            found = living.get(found.parent)
        assert found is not None, f"expected a {role} behind port {held.client_port}, got {list(living.values())}"
        return found

    def kill_sender(self, held: Held, role: Role, *, arrives: bool) -> None:
        """Kills it; what it had sent arrives all the same, or is lost with it."""
        self.stage.kill(self.sender(held, role), f"at {held.line}")
        if arrives:
            held.let_go()
        else:
            held.lose()

    def expect_place(self) -> Sequence[CommitRef]:
        """What is in the bucket is commits that restore, and nothing else: no write without one, no open upload."""
        with closing(open_store(self.place)) as store:
            found = commits(store)
            assert all(
                isinstance(one, CommitRef) and verify(store, one, threads=2, deep=True).is_intact for one in found
            )
            intact = [one for one in found if isinstance(one, CommitRef)]
            assert _writes(info.key for info in store.list("steps")) == {(one.step, one.write_id) for one in intact}
            assert isinstance(store, UploadsParts)
            assert list(store.list_uploads("")) == []
        return intact


@contextlib.contextmanager
def saving_there(folder: Path, s3: S3Server, proxy: FaultProxy) -> Iterator[HeldRun]:
    """A run that saves to the bucket."""
    above = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    checkpoint = f"store: '{above}', save_limit: {SAVE_LIMIT}"
    with _held_run(folder, s3, proxy, checkpoint, place=f"{above}/kills", store_url=f"{above}/kills") as run:
        yield run


@contextlib.contextmanager
def draining_there(folder: Path, s3: S3Server, proxy: FaultProxy, *, more: str = "") -> Iterator[HeldRun]:
    """A run that saves to a folder, drains to the bucket, and is over once its last checkpoint is there."""
    above = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    checkpoint = f"store: {folder / 'fast'}, drain: {{to: '{above}'{more}}}, durable: drain"
    fast = str(folder / "fast" / "kills")
    with _held_run(folder, s3, proxy, checkpoint, place=f"{above}/kills", store_url=fast) as run:
        yield run


@contextlib.contextmanager
def _held_run(
    folder: Path, s3: S3Server, proxy: FaultProxy, checkpoint: str, *, place: str, store_url: str
) -> Iterator[HeldRun]:
    text = spec(steps=STEPS, step_ms=None, entrypoint="two_parts:main", checkpoint=checkpoint)
    environment = {**s3.environment, "AWS_ENDPOINT_URL_S3": proxy.endpoint, "PYTHONPATH": _HERE}
    with staged(folder, text, store_url=store_url, environment=environment) as stage:
        yield HeldRun(stage, proxy, place)


def stop(found: Found) -> None:
    os.kill(found.pid, signal.SIGSTOP)


def go_on(found: Found) -> None:
    """If it is still there: whoever has given it up may have ended it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGCONT)


def _writes(keys: Iterator[str]) -> set[tuple[Step, WriteId] | None]:
    return {write_of_key(key) for key in keys}
