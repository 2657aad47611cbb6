"""A run under attack: starts `behemoth run`, kills what it is told to, resumes, and holds the end to what it must be.

Only what an operator has is used: the command, its directory, and signals. Waits are bounded; whatever is killed is a
process that carries this stage's mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behemoth.app.history import read_history
from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore, UploadsParts
from behemoth.reconcile.journal import audit, decode_lines
from behemoth.reconcile.ledger import books
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_store
from behemoth.testing.leftovers import MARK_VARIABLE, Found, Role, half_written, processes

COMMAND = str(Path(sys.executable).with_name("behemoth"))
DYING = str(Path(__file__).with_name("dying"))
END_LIMIT_S = 900.0
"""Of any wait: it ends a hang and judges no speed. pytest's own limit ends most tests before."""
GONE_LIMIT_S = 50.0
"""Agents see the end of their starter at once; this is for Ray and a busy machine, and less than any grace."""
POLL_S = 0.005

SPEC = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: kills}}
spec:
  nodes: {{count: 2, gpus_per_node: {gpus}, spares: 1}}
  mesh: {{dp: {ranks}}}
  workload:
    entrypoint: {entrypoint}
    preload: [numpy]
    steps: {steps}
    args: {{{args}}}
  checkpoint: {{every: {{steps: {every}}}{checkpoint}}}
  recovery:
    max_failures_without_progress: {failures}
    hang_floor: {{{floors}}}
"""


def spec(
    *,
    gpus: int = 1,
    entrypoint: str = "behemoth.workloads.counter:main",
    steps: int = 120,
    step_ms: int | None = 10,
    every: int = 10,
    failures: int = 1000,
    floors: str = "step: 60s",
    checkpoint: str = "",
) -> str:
    """A numpy run. Random kills may well hit the same rank three times before it gets anywhere, hence `failures`."""
    args = "" if step_ms is None else f"step_ms: {step_ms}"
    return SPEC.format(
        gpus=gpus,
        ranks=2 * gpus,
        entrypoint=entrypoint,
        steps=steps,
        args=args,
        every=every,
        failures=failures,
        floors=floors,
        checkpoint=f", {checkpoint}" if checkpoint else "",
    )


@dataclass(slots=True, kw_only=True)
class KillStage:
    """One run directory and whatever runs in it. Use it as a context: at its end nothing of it is left, or it fails."""

    folder: Path
    text: str
    arguments: Sequence[str] = ("--runtime", "process")
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    place: Path | None = None
    """Where the run directory's parent is, when not in `folder`."""
    store_url: str = ""
    """The run's own place in a store elsewhere; its checkpoints lie in the run directory when empty."""
    process: subprocess.Popen[bytes] | None = None
    kills: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return (self.place or self.folder) / "run"

    @property
    def store(self) -> ObjectStore:
        return open_store(self.store_url or str(self.directory / "checkpoints"))

    def start(self, **environment: str) -> None:
        """`behemoth run`, the first time or again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "run.yaml"
        file.write_text(self.text)
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                [COMMAND, "run", str(file), "--dir", str(self.directory), "-o", "json", *self.arguments],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=self._environment(environment),
            )

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """That of this process; a folder of modules goes before those that it has."""
        asked = {**self.environment, **more}
        found = {**os.environ, **asked, MARK_VARIABLE: self.mark}
        if "PYTHONPATH" in asked and "PYTHONPATH" in os.environ:
            found["PYTHONPATH"] = f"{asked['PYTHONPATH']}{os.pathsep}{os.environ['PYTHONPATH']}"
        return found

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        assert self.process is not None
        return self.process.wait(END_LIMIT_S)

    def finish(self) -> dict[str, Any]:
        """Until the command has ended by itself with 0; resumes it whenever it was killed. The summary."""
        while (code := self.wait()) == -signal.SIGKILL:
            self.resume()
        assert code == 0, f"exit {code} after {self.kills}:\n{self.told()}"
        return self.summary()

    def resume(self) -> None:
        """The same command again, once everything below the killed one is gone."""
        self.wait()
        self.expect_no_process()
        self.start()

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return found

    def living(self, *roles: Role) -> list[Found]:
        return [found for found in processes(self.mark) if not roles or found.role in roles]

    def kill(self, found: Found, why: str = "") -> None:
        """SIGKILL to exactly this process, if it is still what it was."""
        if found.pid in {one.pid for one in self.living(found.role)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)
                self.kills.append(f"{found.role} {why}".strip())

    def kill_one(self, role: Role, dice: random.Random, why: str = "") -> bool:
        """One living process of this role; False when there is none at the moment."""
        victims = self.living(role)
        if not victims:
            return False
        self.kill(dice.choice(victims), why)
        return True

    def events(self, *reasons: str) -> list[dict[str, object]]:
        """What was told so far, whole lines only."""
        path = self.directory / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        told = [json.loads(line) for line in lines if line]
        return [event for event in told if not reasons or event["reason"] in reasons]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Raises AssertionError when it takes too long, or when the run ended before."""
        deadline_s = time.monotonic() + END_LIMIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"expected {what} within {END_LIMIT_S} s:\n{self.told()}"
            assert self.is_running() or condition(), f"expected {what} before the end of the run:\n{self.told()}"
            time.sleep(POLL_S)

    def until_event(self, reason: str, count: int = 1) -> None:
        self.until(lambda: len(self.events(reason)) >= count, f"{count} x {reason}")

    def told(self) -> str:
        """The end of what the command said, for messages of failed tests."""
        err = (self.folder / "err").read_text(errors="replace") if (self.folder / "err").exists() else ""
        return f"kills: {self.kills}\n{err[-6000:]}"

    def expect_no_process(self) -> None:
        deadline_s = time.monotonic() + GONE_LIMIT_S
        while left := self.living():
            assert time.monotonic() < deadline_s, f"left after {GONE_LIMIT_S} s: {left}\n{self.told()}"
            time.sleep(POLL_S)

    def expect_sound(self, digest: object) -> None:
        """After a run that succeeded: its end equals `digest`, every commit is intact, its journal replays, its ledger
        closes, and nothing is left."""
        self.expect_no_process()
        assert self.summary()["digest"] == digest, self.told()
        self.expect_intact()
        self.expect_journal()
        store = self.store
        root = Path(store.root) if isinstance(store, LocalStore) else self.directory
        assert half_written(self.directory, root) == [], self.told()
        assert not isinstance(store, UploadsParts) or list(store.list_uploads("")) == [], self.told()

    def is_damaged(self) -> bool:
        """Any commit does not verify."""
        return any(
            isinstance(one, BadCommit) or not verify(self.store, one, threads=1, deep=True).is_intact
            for one in commits(self.store)
        )

    def expect_intact(self) -> None:
        """Every commit, read back deeply."""
        found = commits(self.store)
        assert found
        assert not [one for one in found if isinstance(one, BadCommit)], self.told()
        for one in found:
            assert verify(self.store, one, threads=1, deep=True).problems == (), self.told()

    def expect_journal(self) -> None:
        """Folded again it gives the same effects byte for byte, and the ledger accounts for every microsecond."""
        journal = (self.directory / "evidence.jsonl").read_bytes()
        assert audit(decode_lines(journal)) == [], self.told()
        history = read_history(journal)
        ledger = history.books.ledger
        assert ledger is not None
        assert history.observation is not None
        now_us = history.observation.now_us
        buckets = books(ledger, now_us)
        spent_us = sum(getattr(buckets, name) for name in buckets.__struct_fields__)
        assert spent_us == (now_us - ledger.opened_us) * ledger.num_ranks


@contextlib.contextmanager
def staged(folder: Path, text: str, **more: object) -> Iterator[KillStage]:
    """A stage whose processes are all ended with the context, whatever the test did."""
    stage = KillStage(folder=folder, text=text, **more)  # type: ignore[arg-type]
    try:
        yield stage
    finally:
        if stage.is_running():
            assert stage.process is not None
            stage.process.kill()
            stage.process.wait(END_LIMIT_S)
        for _ in range(3):
            for found in stage.living():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found.pid, signal.SIGKILL)
            time.sleep(0.05)


def undisturbed(folder: Path, text: str, *arguments: str) -> object:
    """The digest of a run that nobody disturbs."""
    with staged(folder, text, arguments=arguments or ("--runtime", "process")) as stage:
        stage.start()
        summary = stage.finish()
        stage.expect_sound(summary["digest"])
        return summary["digest"]
