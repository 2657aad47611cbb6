"""`behemoth logs`: what the ranks printed, from the files of the run directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from behemoth.app.run_directory import RunDirectory
from behemoth.base.errors import NotFound
from behemoth_cli.commands.candidates import run_names
from behemoth_cli.commands.rank_list import parse_ranks
from behemoth_cli.context import Context, find_run, lock_holder, read_run
from behemoth_cli.out.console import Console
from behemoth_cli.views.logs import label_width, last, log_lines, merged

POLL_S = 0.25
_FILE = re.compile(r"rank-([0-9]{5,})\.log")
_ATTEMPT = re.compile(r"attempt-([0-9]{4,})")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def logs(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A name under ./runs, run/NAME, or a run directory.", autocompletion=run_names
        ),
    ] = None,
    rank: Annotated[str, typer.Option(metavar="LIST", help="Ranks such as 0-3,7; all when left out.")] = "",
    attempt: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The start of the gang; the latest when left out.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as more is printed, to the end of the run.")
    ] = False,
    tail: Annotated[int | None, typer.Option(metavar="N", min=0, help="Only the last N lines of each rank.")] = None,
) -> None:
    """Output of the ranks. What several ranks print alike is shown once, with the list of the ranks."""
    context: Context = ctx.obj
    wanted = parse_ranks(rank, option="--rank")
    directory = find_run(run, context.console)
    stream = awaited(directory, wanted, attempt, context.console) if follow else LogStream(directory, wanted, attempt)
    if stream is None:
        context.console.note(f"run/{directory.path.name} has ended and printed nothing that was asked for")
        return
    context.console.note(f"run/{directory.path.name} attempt {stream.attempt}, {stream.num_ranks} ranks")
    for line in stream.first(tail=tail, is_final=not follow):
        context.console.lines([line])
        if context.console.is_reader_gone:
            return
    while follow and not context.console.is_reader_gone and stream.is_open:
        before = stream.attempt
        context.console.lines(stream.more())
        if stream.attempt != before:
            context.console.note(f"attempt {stream.attempt}")
        time.sleep(POLL_S)


def awaited(
    directory: RunDirectory, wanted: frozenset[int] | None, attempt: int | None, console: Console
) -> LogStream | None:
    """The logs as soon as there are some; None when the run has ended without any. Raises NotFound for what would be
    waited for in vain: where nobody runs to begin with, an attempt that is over, ranks that the run does not have."""
    is_told = False
    while True:
        # Before the look, so that a last line is not missed.
        may_come = _is_live(directory) and (attempt is None or attempt >= max(_attempts(directory.logs), default=0))
        try:
            return LogStream(directory, wanted, attempt)
        except NotFound:
            if not may_come:
                if is_told:
                    return None
                raise
        if not is_told:
            is_told = True
            _require_ranks(directory, wanted)
            console.note(f"run/{directory.path.name} has printed nothing that was asked for yet; waiting for it")
        time.sleep(POLL_S)


class LogStream:
    """The logs of one attempt, or, when none is named, of each attempt as it comes. Raises NotFound without any."""

    def __init__(self, directory: RunDirectory, wanted: frozenset[int] | None, attempt: int | None) -> None:
        self._directory = directory
        self._wanted = wanted
        self._goes_on = attempt is None
        self.attempt = attempt if attempt is not None else _latest_attempt(directory.logs)
        self._followed = {
            number: _Followed(path) for number, path in _files(directory.logs, self.attempt, wanted).items()
        }
        self._width = label_width(list(self._followed))
        self.is_open = True
        """Whether more may come: somebody runs there, or the last look found something."""

    @property
    def num_ranks(self) -> int:
        return len(self._followed)

    def first(self, *, tail: int | None, is_final: bool) -> Iterator[str]:
        """The lines so far: the newest `tail` of each rank."""
        found = {number: last(one.lines(is_final=is_final), tail) for number, one in self._followed.items()}
        return log_lines(merged(found), width=self._width)

    def more(self) -> Iterator[str]:
        """Lines that were added since the last call."""
        is_live = _is_live(self._directory)
        news = {number: one.lines(is_final=not is_live) for number, one in self._followed.items()}
        self.is_open = is_live or any(news.values())
        if self._goes_on:
            self._look_for_new()
        return log_lines(merged(news), width=self._width)

    def _look_for_new(self) -> None:
        """The next attempt, once there is one, and ranks that printed their first line since."""
        latest = _latest_attempt(self._directory.logs)
        if latest > self.attempt:
            self.attempt, self._followed = latest, {}
        try:
            files = _files(self._directory.logs, self.attempt, self._wanted)
        except NotFound:
            return
        self._followed = {number: self._followed.get(number) or _Followed(path) for number, path in files.items()}
        self._width = max(self._width, label_width(list(files)))


def _is_live(directory: RunDirectory) -> bool:
    return lock_holder(directory.path / "lock") is not None


def _require_ranks(directory: RunDirectory, wanted: frozenset[int] | None) -> None:
    num_ranks = read_run(directory.document).nodes.num_ranks
    if wanted is not None and min(wanted) >= num_ranks:
        message = f"option --rank: expected ranks from 0 to {num_ranks - 1}, got {','.join(map(str, sorted(wanted)))}"
        raise NotFound(message, code="no-logs")


def _latest_attempt(logs: Path) -> int:
    """Raises NotFound while nothing was printed."""
    attempts = _attempts(logs)
    if not attempts:
        raise NotFound(
            f"{logs}: expected logs of ranks, got none",
            hint="a log begins with the first line that a rank prints",
            code="no-logs",
        )
    return max(attempts)


def _attempts(logs: Path) -> list[int]:
    return [int(match[1]) for path in logs.glob("attempt-*") if (match := _ATTEMPT.fullmatch(path.name))]


def _files(logs: Path, attempt: int, wanted: frozenset[int] | None) -> dict[int, Path]:
    """Rank -> file, by rank. Raises NotFound naming what there is."""
    folder = logs / f"attempt-{attempt:04d}"
    found = {int(match[1]): path for path in sorted(folder.glob("rank-*.log")) if (match := _FILE.fullmatch(path.name))}
    shown = {number: path for number, path in found.items() if wanted is None or number in wanted}
    if not shown:
        what = f"output of rank {','.join(map(str, sorted(wanted)))}" if wanted is not None else "output"
        hint = "a rank that printed nothing has no log; `behemoth status` tells which attempts there were"
        raise NotFound(f"attempt {attempt}: expected {what}, got none below {logs}", hint=hint, code="no-logs")
    return shown


class _Followed:
    """One rank's log, read to its end again and again, through its rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._inode = 0
        self._offset = 0

    def lines(self, *, is_final: bool) -> Sequence[str]:
        """What was added since the last call; `is_final`: an unfinished last line counts too."""
        data = self._rest + b"".join(self._new_bytes())
        whole, newline, self._rest = data.rpartition(b"\n")
        found = whole.split(b"\n") if newline else []
        if is_final and self._rest:
            found, self._rest = [*found, self._rest], b""
        return [line.decode(errors="replace").rstrip("\r") for line in found]

    def _new_bytes(self) -> Iterator[bytes]:
        """First what is left of the file that was rotated away, then the present one, which is opened before the other
        is looked for: what is rotated in between is then still in hand."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                yield self._rest_of_older(inode)
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            data = file.read()
            self._offset += len(data)
            yield data

    def _rest_of_older(self, newer_inode: int) -> bytes:
        try:
            file = self._path.with_name(self._path.name + ".1").open("rb")
        except FileNotFoundError:
            return b""
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode == newer_inode:
                return b""
            file.seek(self._offset if inode == self._inode else 0)
            return file.read()
