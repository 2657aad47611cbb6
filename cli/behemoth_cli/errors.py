"""The one form in which errors reach people: a sentence, then `cause:`, `hint:` and `code:` lines, and an exit code.

Knows the classes of `behemoth.base.errors` and what typer raises; any other exception is reported as a bug of Behemoth.
Prints nothing itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import typer

from behemoth.base.errors import (
    BehemothError,
    Conflict,
    Corrupt,
    Denied,
    Internal,
    Invalid,
    NotFound,
    Timeout,
    Unavailable,
)
from behemoth_cli.exits import Exit

_EXITS: tuple[tuple[type[BaseException], Exit], ...] = (
    (Invalid, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (Denied, Exit.DENIED),
    (Timeout, Exit.TIMEOUT),
    (Corrupt, Exit.UNHEALTHY),
    (Conflict, Exit.FAILED),
    (Unavailable, Exit.FAILED),
    (Internal, Exit.FAILED),
    (FileNotFoundError, Exit.NOT_FOUND),
    (PermissionError, Exit.DENIED),
    (TimeoutError, Exit.TIMEOUT),
)
"""First match wins."""
_BUG_HINT = "this is a bug of behemoth: run the command again with -v and report the trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The parts of one error as they are shown. `cause` and `hint` may be empty."""

    message: str
    cause: str
    hint: str
    code: str
    exit: Exit


def failure_of(error: BaseException) -> Failure:
    """The failure of any exception."""
    match error:
        case BehemothError():
            return Failure(
                message=error.message,
                cause=_cause(error),
                hint=error.hint or (_BUG_HINT if isinstance(error, Internal) else ""),
                code=error.code,
                exit=_exit(error),
            )
        case typer.TyperException():
            return _of_usage(error)
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            message = f"{name}{error.strerror or error}"
            return Failure(message=message, cause="", hint="", code="os-error", exit=_exit(error))
        case _:
            message = f"internal: {type(error).__name__}: {error}"
            return Failure(message=message, cause=_cause(error), hint=_BUG_HINT, code="internal", exit=Exit.FAILED)


def lines_of(failure: Failure) -> list[str]:
    """Lines for stderr. A message of several lines keeps them."""
    rows = [("error", failure.message), ("cause", failure.cause), ("hint", failure.hint), ("code", failure.code)]
    return [f"{name}: {text}" for name, text in rows if text]


def choose(text: str, choices: Iterable[str], *, name: str) -> str:
    """`text` if it is one of `choices`. Raises Invalid with the nearest one as hint; `name` opens the message."""
    known = list(choices)
    if text in known:
        return text
    expected = f"one of {', '.join(known)}" if len(known) > 1 else known[0]
    message = f"{name}: expected {expected}, got {text!r}"
    raise Invalid(message, hint=nearest(text, known), code="unknown-name")


def nearest(text: str, known: Iterable[str]) -> str:
    """`did you mean x?`, or an empty text when no choice is similar."""
    close = difflib.get_close_matches(text.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def unwritable(got: str) -> Unavailable:
    """The error of a standard output that cannot be written: without it a script would take partial output for
    complete."""
    hint = "send the output to where there is space, and leave it open"
    return Unavailable(f"standard output: expected to write to it, got {got}", hint=hint, code="output-unwritable")


def _of_usage(error: typer.TyperException) -> Failure:
    """The failure of a usage error of typer: unknown options, missing arguments, values of a wrong type."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "behemoth"
    option = getattr(error, "option_name", None)
    possibilities = getattr(error, "possibilities", None)
    message, code = error.format_message().rstrip("."), "usage"
    hint = f"`{command} --help` shows what it takes"
    if option is not None and "No such option" in message:
        message, code = f"option {option!r}: expected an option of `{command}`, got an unknown one", "unknown-option"
        hint = f"did you mean {sorted(possibilities)[0]}?" if possibilities else hint
    if message.startswith("No such command"):
        message, _, known = message.partition(". Did you mean ")
        code, hint = "unknown-name", f"did you mean {known.strip(chr(39) + '?')}?" if known else hint
    message = message[:1].lower() + message[1:]
    return Failure(message=" ".join(message.split()), cause="", hint=hint, code=code, exit=Exit.USAGE)


def _exit(error: BaseException) -> Exit:
    return next((code for kind, code in _EXITS if isinstance(error, kind)), Exit.FAILED)


def _cause(error: BaseException) -> str:
    """The chained causes of an error, without those that its message repeats."""
    told, cause = str(error), error.__cause__
    found: list[str] = []
    while cause is not None and len(found) < 4:
        text = " ".join((getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).split())
        if text.lower() not in told.lower():  # messages begin in lower case
            found.append(text)
            told += text
        cause = cause.__cause__
    return ": ".join(found)
