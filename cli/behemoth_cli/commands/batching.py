"""What verbs that work in batches have in common: where the batches run, and where it is kept what is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
"""Jobs of less are not recorded, unless --state asks for it: they are done again sooner than looked up."""

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
        """Where results of a job are kept; what an earlier call had done is said."""
        from behemoth.app.batches.record import Unrecorded, recorded

        if num_bytes < RECORDED_BYTES and not self.state:
            yield Unrecorded(note)
            return
        folder = Path(self.state).expanduser() if self.state else state_folder()
        with recorded(folder, verb=verb, job=job, note=note, anew=self.anew) as record:
            if done := record.done():
                self.console.note(
                    f"going on behind {len(done)} batches of an earlier call that did not end ({record.path}); "
                    "--anew does them again"
                )
            yield record


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


def state_folder() -> Path:
    """As the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "behemoth"
