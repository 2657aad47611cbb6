"""`behemoth run`: one run on this machine, told as it goes, with a summary at its end.

The run and its view share nothing but snapshots and events: the view has a thread of its own, so a terminal that
stands still cannot hold up a heartbeat.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from behemoth.app.history import read_history
from behemoth.app.inventory_file import read_inventory
from behemoth.app.run_directory import RunDirectory
from behemoth.app.start_run import claim
from behemoth.app.summary import DrainTable, Summary, seen_again
from behemoth.base.decoding import UNDECODABLE, decode_json
from behemoth.base.errors import Invalid
from behemoth.ports import ObjectStore
from behemoth.spec.drill import Fault, misaim, parse_fault
from behemoth.spec.model import ModelFile
from behemoth.spec.run import TrainingRun, require_fit
from behemoth.storage.open import open_store
from behemoth.wiring.engine import Engine
from behemoth.wiring.run import LocalRun, RunRequest
from behemoth_cli.commands.candidates import one_of, output_option
from behemoth_cli.commands.forced_end import forced_end
from behemoth_cli.commands.run_progress import RunProgress, narrated
from behemoth_cli.context import RUNS, Context, chosen_format, read_file, read_run
from behemoth_cli.errors import choose
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Console, Format
from behemoth_cli.views.summary import summary_page

REFRESH_S = 0.2
RUNTIMES = ("ray", "process")
_ENDINGS = {
    "succeeded": Exit.OK,
    "failed": Exit.RUN_FAILED,
    "suspended": Exit.RUN_NOT_FINISHED,
    "cancelled": Exit.RUN_CANCELLED,
}
_STOPPING = "saving, then stopping at the next agreed step; once more stops at once"
_READING = (
    "the run is over; what is left is to drain its last checkpoint, if it says so, and to read it back; once more stops"
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def run(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The run file.", show_default=False)],
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="The run directory; runs/NAME when left out.")
    ] = None,
    drill: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="Inject a fault, such as 'kill rank 1 at step 40'. May be repeated."),
    ] = None,
    no_drill: Annotated[bool, typer.Option("--no-drill", help="Leave out the faults of the file.")] = False,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="ray|process",
            help="What starts the agents: a Ray of our own, or plain processes.",
            autocompletion=one_of(*RUNTIMES),
        ),
    ] = "ray",
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Join the Ray at this address instead of starting one.")
    ] = "",
    output: Annotated[str, output_option("json", "yaml", help="Format of the summary.")] = "",
) -> int:
    """Run a run file on this machine: place, train, checkpoint, recover.

    Everything of the run lies in one directory. The same command resumes a run that was interrupted. Ctrl-C once saves
    and stops, twice stops at once. Progress goes to stderr, the summary to stdout.
    """
    context: Context = ctx.obj
    form = chosen_format(output, "json", "yaml")
    training = load_run(file)
    place = directory if directory is not None else RUNS / training.name
    faults = [*(() if no_drill else training.drill), *_faults(drill or [], training)]
    engine = _engine(runtime, address)
    done = finished_summary(training, place)
    if done is not None:
        context.console.note(f"run/{training.name}: succeeded before; nothing to do")
        if done.digest_trouble:
            context.console.note(context.console.paint("warning:", "1;31") + f" {done.digest_trouble}")
        context.console.show(summary_page(done), form)
        return Exit.OK
    with narrated(context) as narrator:
        progress = RunProgress(narrator, context.console)
        request = RunRequest(
            run=training,
            directory=place,
            faults=faults,
            engine=engine,
            ray_address=address,
            on_event=progress.event,
            on_phase=progress.phase,
        )
        local = LocalRun(request)
        progress.watch(local)
        with forced_end(progress.forced) as stop_in_time:
            summary, interrupt = asyncio.run(supervise(local, progress, stop_in_time))
    return conclude(summary, interrupt, context.console, form, place)


def load_run(file: Path) -> TrainingRun:
    """The run that a file describes, its model's inventory included. Raises Behemoth's errors."""
    training = read_run(file)
    if isinstance(training.model, ModelFile):
        require_fit(training, read_inventory(Path(training.model.inventory), read_file))
    return training


def finished_summary(training: TrainingRun, place: Path) -> Summary | None:
    """The summary of a run that succeeded in this directory, with what is there of its newest checkpoint now; None when
    there is something left to do.

    Raises Conflict for a directory that somebody uses or that holds another run.
    """
    directory = RunDirectory(place)
    if directory.identity() is None or directory.is_beginning():
        return None
    found = claim(training, place)
    claimed = found.directory
    try:
        journal = claimed.journal.read_bytes() if claimed.journal.exists() else b""
        observation = read_history(journal).observation
        if observation is None or observation.outcome != "succeeded" or not claimed.summary.exists():
            return None
        summary = decode_json(claimed.summary.read_bytes(), Summary)
        is_drained = summary.drain is None or summary.drain.is_complete
        # One of an earlier stop tells of an older state.
        if summary.outcome != "succeeded" or not is_drained:
            return None
        return seen_again(summary, _opened(found.store_url), url=found.store_url)
    except UNDECODABLE:
        # Cut off or of another release: the run writes it anew from what it finds.
        return None
    finally:
        claimed.close()


@contextmanager
def _opened(url: str) -> Iterator[ObjectStore]:
    with closing(open_store(url)) as store:
        yield store


async def supervise(
    local: LocalRun, progress: RunProgress, stop_in_time: Callable[[], None]
) -> tuple[Summary | None, signal.Signals | None]:
    """Run to the end or to an interrupt: the summary, None when it was stopped at once, and the first signal.

    `stop_in_time` is called when it shall stop at once, so that nothing can hold that up."""
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(local.run(), name="run")
    heard: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        heard.append(number)
        has_begun = local.snapshot() is not None
        gentle = _READING if local.is_over else _STOPPING
        progress.note(f"{number.name}: {gentle if has_begun and len(heard) == 1 else 'stopping at once'}")
        local.interrupt()
        if not has_begun or len(heard) > 1:
            work.cancel()
            stop_in_time()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    try:
        while not work.done():
            progress.look(local)
            await asyncio.wait([work], timeout=REFRESH_S)
        progress.look(local)
        return work.result(), heard[0] if heard else None
    except asyncio.CancelledError:
        return None, heard[0] if heard else signal.SIGINT
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


def conclude(
    summary: Summary | None, interrupt: signal.Signals | None, console: Console, form: Format, place: Path
) -> Exit:
    """Print what there is to say at the end; the exit code."""
    if summary is None:
        console.note(f"stopped at once; the same command resumes the run in {place}")
        return Exit.INTERRUPTED
    console.show(summary_page(summary), form)
    if summary.outcome == "failed":
        console.note(console.paint("error:", "1;31") + f" run/{summary.name} failed: {summary.reason}")
        console.note(f"hint: `behemoth logs {place}` shows what the ranks said; the same command tries again")
        console.note("code: run-failed")
        return Exit.RUN_FAILED
    ending = _ENDINGS[summary.outcome] if summary.outcome is not None else Exit.RUN_NOT_FINISHED
    if ending is Exit.RUN_NOT_FINISHED:
        kept = f"is saved at step {summary.step}" if summary.step else "had nothing to save yet"
        console.note(f"run/{summary.name} {kept}; the same command resumes it")
        return Exit.INTERRUPTED if interrupt is signal.SIGINT else ending
    if summary.drain is not None and not summary.drain.is_complete:
        return _undrained(summary, summary.drain, console)
    return ending


def _undrained(summary: Summary, drain: DrainTable, console: Console) -> Exit:
    """The run has trained to its end, and its last checkpoint is only where it was saved."""
    console.note(
        console.paint("error:" if drain.is_required else "warning:", "1;31")
        + f" run/{summary.name}: the checkpoint of step {summary.step} is not in {drain.url}: {drain.trouble}"
    )
    console.note("hint: the same command tries again to drain it")
    if not drain.is_required:
        return Exit.OK
    console.note("code: not-durable")
    return Exit.RUN_NOT_FINISHED


def _faults(texts: Sequence[str], training: TrainingRun) -> list[Fault]:
    nodes = training.nodes
    faults = [parse_fault(text, name="option --drill") for text in texts]
    for text, fault in zip(texts, faults, strict=True):
        reason = misaim(
            fault,
            num_ranks=nodes.num_ranks,
            num_nodes=nodes.count + nodes.spares,
            total_steps=training.workload.steps,
        )
        if reason:
            raise Invalid(f"option --drill {text!r}: {reason}", code="drill-aim")
    return faults


def _engine(runtime: str, address: str) -> Engine:
    choose(runtime, RUNTIMES, name="option --runtime")
    if runtime == "ray":
        return "joined-ray" if address else "embedded-ray"
    if address:
        raise Invalid(
            "option --address: expected it only with --runtime ray, got it with --runtime process",
            hint="leave one of the two out",
            code="option-conflict",
        )
    return "processes"
