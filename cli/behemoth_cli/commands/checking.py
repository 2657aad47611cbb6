"""How `behemoth ckpt verify` and `scrub` read checkpoints back, and how they print the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from behemoth.base.errors import Corrupt, NotFound
from behemoth.checkpoint.commit_log import BadCommit
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.problem import Problem, problem_at
from behemoth.checkpoint.verify import Spread, Verification, verify
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth_cli.commands.selection import found_of, still_there
from behemoth_cli.context import Checkpoints
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Console, Format
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.checkpoints import Found, verify_page
from behemoth_cli.views.figures import work

Checked = Sequence[tuple[Found, Verification]]
MakeSpread = Callable[[Callable[[int, int], None]], Spread]
"""From a progress bar to what checks the chunks of a checkpoint."""


def checked(
    store: ObjectStore,
    commits: Sequence[CommitRef | BadCommit],
    console: Console,
    *,
    threads: int,
    deep: bool,
    spread: MakeSpread | None = None,
) -> Checked:
    """A report for each that is still there when it was read; of the others a note. Without `spread` chunks are checked
    through `store`."""
    reports = [(found_of(one), _verified(store, one, console, threads, deep, spread)) for one in commits]
    kept = [(found, report) for found, report in reports if report.is_intact or still_there(store, found)]
    for found, _ in reports:
        if not any(found is one for one, _ in kept):
            console.note(f"checkpoint/{found.step} was deleted while it was read: left out")
    return kept


def told(reports: Checked, of_store: Sequence[Problem], console: Console, place: Checkpoints, form: Format) -> Exit:
    """Print the reports; the exit code."""
    console.show(verify_page(reports, of_store), form)
    for found, _ in reports:
        if found.state == "foreign":
            console.note(f"hint: remove {place.url}/{found.key}, or move it elsewhere, if nobody needs it there")
    return Exit.UNHEALTHY if of_store or not all(report.is_intact for _, report in reports) else Exit.OK


def _verified(
    store: ObjectStore,
    commit: CommitRef | BadCommit,
    console: Console,
    threads: int,
    deep: bool,
    spread: MakeSpread | None,
) -> Verification:
    progress = Progress(console, partial(work, f"verifying checkpoint/{commit.step}"))
    of_commit = None if spread is None else spread(progress.update)
    try:
        return verify(store, commit, threads=threads, deep=deep, progress=progress.update, spread=of_commit)
    except (Corrupt, NotFound) as error:  # of a worker, which opens the checkpoint for itself
        failed = error
    finally:
        progress.close()
    return _verified_here(store, commit, console, threads, deep, failed)


def _verified_here(
    store: ObjectStore,
    commit: CommitRef | BadCommit,
    console: Console,
    threads: int,
    deep: bool,
    failed: Corrupt | NotFound,
) -> Verification:
    """Verify in this process, after a worker could not open the checkpoint. It may have been deleted by retention; if
    not, the worker sees another store than this process, which is printed, and its damage is reported."""
    if still_there(store, found_of(commit)):
        console.note(
            f"warning: checkpoint/{commit.step} is checked by this process alone, because a worker could not open it: "
            f"{failed.message}"
        )
    report = verify(store, commit, threads=threads, deep=deep)
    if isinstance(failed, NotFound) or commit.step is None or not report.is_intact:
        return report
    problem = problem_at("unreadable", commit_key(commit.step), 0, 0, f"a worker alone found damage: {failed.message}")
    return replace(report, problems=(problem,))
