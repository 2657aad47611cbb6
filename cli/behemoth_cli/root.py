"""The program: finds the verb, runs it, and turns whatever comes out into an exit code.

Verbs are imported when they are named, so that `--help` and a typo cost no more than this file does; the table below
is all that the help of the whole shows. Supervises: the only place of the command line that catches every exception.
Neighbour: `start`, the console script.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]  # offered nowhere else
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from behemoth.base.errors import Invalid
from behemoth_cli.context import Context
from behemoth_cli.errors import choose, failure_of, lines_of, unwritable
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import ColorChoice, Console, send_to_nowhere

VERBS: dict[str, str] = {
    "run": "Run a run file on this machine: place, train, checkpoint, recover.",
    "status": "One screen about a run, from its directory.",
    "get": "One row each: runs, checkpoints, nodes.",
    "logs": "Output of the ranks, merged where they say the same.",
    "ckpt": "Look at, prove, keep, copy and convert checkpoints.",
    "plan": "What a run file asks for: ranks, nodes, bytes. Starts nothing.",
    "explain": "What a field of the run file means and takes.",
    "version": "Versions of behemoth and of what it stands on.",
    "completion": "A completion script for bash, zsh or fish.",
    "help": "Topics beyond the options, such as exit-codes.",
}
"""Verb -> what it does; the module of a verb has its name."""

COMPLETE_VARIABLE = "_BEHEMOTH_COMPLETE"
"""Set by completion scripts: the program then prints what could come next."""
_GLOBAL_FLAGS = ("-v", "--verbose")
_MAY_BE_EMPTY = ("--reason",)
"""Options whose value may be an empty text."""
_COLORS: tuple[ColorChoice, ...] = ("auto", "always", "never")


class Verbs(TyperGroup):
    """Loads a verb's module when the verb is used."""

    @override
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(VERBS)

    @override
    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """A placeholder with the name and help of a verb, for listings."""
        if cmd_name not in VERBS and ctx.resilient_parsing:
            return None
        choose(cmd_name, VERBS, name="command")
        return TyperCommand(name=cmd_name, help=VERBS[cmd_name])

    @override
    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        module = importlib.import_module(f"behemoth_cli.commands.{name}")
        command = typer.main.get_command(module.app)
        command.name = name
        if not ctx.resilient_parsing:
            _refuse_empty_values(command, rest)
        return name, command, rest

    @override
    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: behemoth help exit-codes",
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the trace of an error.")] = False,
    color: Annotated[
        str,
        typer.Option(
            metavar="auto|always|never", help="Colour; NO_COLOR counts too.", autocompletion=lambda: list(_COLORS)
        ),
    ] = "auto",
) -> None:
    """Trains giant models through faults: places gangs, shards checkpoints, brings runs back within seconds."""
    choose(color, _COLORS, name="option --color")
    chosen = next(choice for choice in _COLORS if choice == color)
    console = Console(sys.stdout, sys.stderr, color=chosen, environment=os.environ)
    ctx.obj = Context(console=console, is_verbose=verbose)
    ctx.call_on_close(console.close)
    if ctx.invoked_subcommand is None:
        console.write(ctx.get_help() + "\n")


def main() -> None:
    """The whole program; ends the process."""
    fill_standard_streams()
    program = "kubectl behemoth" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "behemoth"
    sys.exit(run(sys.argv[1:], program=program))


def fill_standard_streams() -> None:
    """Open /dev/null for standard streams that are closed (`2>&-`): otherwise the next file that is opened would get
    the descriptor, and output of a child process would end up in it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process


def run(arguments: Sequence[str], *, program: str = "behemoth") -> int:
    """Run one command line; the exit code. Errors go to stderr in their common form (`errors`)."""
    if os.environ.get(COMPLETE_VARIABLE):
        return complete(program)
    arguments = hoisted(arguments)
    is_verbose = any(flag in arguments for flag in _GLOBAL_FLAGS)
    try:
        if sys.stdout is None:
            raise unwritable("a closed one")
        _escape_what_is_no_text(sys.stdout)
        command = typer.main.get_command(app)
        code = command.main(args=list(arguments), prog_name=program, standalone_mode=False)
        return int(code) if isinstance(code, int) else Exit.OK
    except BrokenPipeError:
        return Exit.OK
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # click's way to tell of one while it prints a help
            return Exit.OK
        raise
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except OSError as error:
        return _told(_of_output(error), is_verbose)
    except Exception as error:  # noqa: BLE001 - the supervisor of the command line
        return _told(error, is_verbose)


def complete(program: str) -> int:
    """Print completions for a shell's script, which has set the environment. Prints nothing on errors: the text would
    appear in the command line that is being edited."""
    from behemoth_cli.commands.completion import straighten

    try:
        straighten(os.environ, flags=_GLOBAL_FLAGS)
        completion_init()
        with contextlib.redirect_stderr(io.StringIO()):
            typer.main.get_command(app).main(
                args=[], prog_name=program, complete_var=COMPLETE_VARIABLE, standalone_mode=False
            )
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - the supervisor of completion
        return Exit.FAILED
    return Exit.OK


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with global options moved to the front: they may be given anywhere before `--`, as with kubectl."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word in _GLOBAL_FLAGS or word.startswith("--color="):
            front.append(word)
        elif word == "--color":
            front += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            rest.append(word)
    return [*front, *rest]


def _refuse_empty_values(command: Any, arguments: Sequence[str]) -> None:
    """Raises Invalid for an option with an empty value, as `--mesh "$MESH"` without a MESH: the command would do what
    it does without the option. An empty argument after a flag is not a value."""
    takes_any = (*_MAY_BE_EMPTY, *_flags_of(command, arguments))
    before = ""
    for word in arguments:
        option, equals, value = word.partition("=")
        if before == "--":
            return
        empty = before if not word else option if equals and not value else ""
        if empty.startswith("-") and empty not in takes_any:
            raise Invalid(
                f"option {empty}: expected a value, got an empty one",
                hint="leave the option out where there is nothing to say; a variable of the shell may be empty",
                code="empty-value",
            )
        before = word


def _flags_of(command: Any, arguments: Sequence[str]) -> list[str]:
    """Flags (options without a value) of the verb that the arguments name."""
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    flags = (option for option in command.params if getattr(option, "is_flag", False))
    return ["-h", "--help", *(name for option in flags for name in (*option.opts, *option.secondary_opts))]


def _of_output(error: OSError) -> Exception:
    """Click prints a help without our console: what fails in its `echo` is standard output, which the error of a write
    does not say."""
    if traceback.extract_tb(error.__traceback__)[-1].name != "echo":
        return error
    send_to_nowhere(sys.stdout)
    return unwritable(error.strerror or str(error))


def _escape_what_is_no_text(stream: TextIO) -> None:
    """Escape bytes of file names that are not UTF-8 on stdout, as Python does on stderr."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _told(error: Exception, is_verbose: bool) -> int:
    failure = failure_of(error)
    console = Console(sys.stdout, sys.stderr, environment=os.environ)
    if is_verbose:
        console.note("".join(traceback.format_exception(error)).rstrip())
    head, *rest = lines_of(failure)
    console.note(console.paint("error:", "1;31") + head.removeprefix("error:"))
    for line in rest:
        console.note(line)
    return failure.exit
