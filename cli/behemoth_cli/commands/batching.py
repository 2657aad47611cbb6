"""What verbs that work in batches have in common: where the batches run, and where their results are recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth_cli.commands.candidates import one_of
from behemoth_cli.errors import choose
from behemoth_cli.out.console import Console

if TYPE_CHECKING:
    from behemoth.app.batches.jobs import Work
    from behemoth.app.batches.record import Record
    from behemoth.ports import Executor

PLACES = ("threads", "ray")
RECORDED_BYTES = 1 << 30
"""Smaller jobs are recorded only with --state: they are quickly done again."""

On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="|".join(PLACES),
        help="Threads of this process, or one worker on each node of a Ray.",
        autocompletion=one_of(*PLACES),
    ),
]
Address = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Join the Ray at this address instead of starting one; with --on ray.")
]
State = Annotated[
    str, typer.Option("--state", metavar="DIR", help="Where it is kept what is done, to go on after a kill.")
]
Anew = Annotated[bool, typer.Option("--anew", help="Do not go on where the same command was killed.")]


@dataclass(slots=True, kw_only=True, eq=False)
class Batching:
    """The options of one call; the executor is opened when first asked for. Made by `batching`."""

    console: Console
    on: str
    address: str
    state: str
    anew: bool
    threads: int
    _stack: ExitStack = field(default_factory=ExitStack)
    _executor: Executor | None = None
    _is_told: bool = False

    @property
    def is_here(self) -> bool:
        """Whether this process does the work."""
        return self.on == "threads"

    def executor(self, open_work: Callable[[bytes], Work] | None = None, *, worker: str | None = None) -> Executor:
        """Closed when the `batching` block ends. `open_work` opens jobs on threads, for what is open here already;
        `worker` is the module of another program than the usual one for workers."""
        from behemoth.app.batches import jobs
        from behemoth.wiring.batch import WORKER, open_executor

        if self._executor is None:
            if self.is_here:
                self._executor = open_executor("threads", threads=self.threads, open_work=open_work or jobs.open_work)
            elif self.address:
                self.console.note("joining Ray")
                self._executor = open_executor(
                    "joined-ray", threads=self.threads, ray_address=self.address, worker=worker or WORKER
                )
            else:
                self.console.note("starting Ray")
                self._executor = open_executor("embedded-ray", threads=self.threads, worker=worker or WORKER)
            self._stack.callback(self._executor.close)
        return self._executor

    @contextmanager
    def record(self, verb: str, job: bytes, *, num_bytes: int, note: str = "") -> Iterator[Record]:
        """The record of a job; prints how much an earlier call had done. A record that cannot be kept is an error only
        with --state."""
        from behemoth.app.batches.optional_record import recorded_if_possible
        from behemoth.app.batches.record import Unrecorded, recorded

        asked, folder = self._asked(), self._folder()
        keeps: AbstractContextManager[Record]
        if asked:
            keeps = recorded(asked, verb=verb, job=job, note=note, anew=self.anew)
        elif num_bytes < RECORDED_BYTES:
            keeps = nullcontext(Unrecorded(note))
        elif folder is None:
            self._tell_unrecorded("expected a home folder, got none")
            keeps = nullcontext(Unrecorded(note))
        else:
            keeps = recorded_if_possible(
                folder, verb=verb, job=job, note=note, anew=self.anew, tell=self._tell_unrecorded
            )
        with keeps as record:
            if done := record.done():
                self.console.note(
                    f"going on behind {len(done)} batches of an earlier call that did not end (kept in {folder}); "
                    "--anew does them again"
                )
            yield record

    def drop_record(self, verb: str, job: bytes) -> None:
        """Remove the record of a job that is done, which an earlier call left when it was killed."""
        from behemoth.app.batches.record import drop_record

        folder = self._folder()
        if folder is not None:
            drop_record(folder, verb=verb, job=job)

    def _asked(self) -> Path | None:
        return Path(os.path.expanduser(self.state)) if self.state else None

    def _folder(self) -> Path | None:
        return self._asked() or state_folder()

    def _tell_unrecorded(self, reason: str) -> None:
        """Print the warning once for the whole command."""
        if not self._is_told:
            self.console.note(
                f"going on without a record of what is done: {reason}; --state DIR keeps it in another folder"
            )
        self._is_told = True


@contextmanager
def batching(
    console: Console, *, on: str, address: str, threads: int, state: str = "", anew: bool = False
) -> Iterator[Batching]:
    """Raises Invalid for options that do not go together."""
    choose(on, PLACES, name="option --on")
    if address and on != "ray":
        raise Invalid(
            "option --address: expected it only with --on ray, got it with --on threads", code="option-without-effect"
        )
    made = Batching(console=console, on=on, address=address, state=state, anew=anew, threads=threads)
    with made._stack:
        yield made


def state_folder() -> Path | None:
    """As the XDG base directory specification has it; None for a user without a home folder."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return None if state.startswith("~") else Path(state) / "behemoth"
