"""One tree of errors, sorted by what the handler does, not by who raised it.

A handler asks one question: shall I fix the input, look elsewhere, try again, or give up? So the classes answer
that question and nothing else. What exactly happened is the `code`, append-only and kebab-case, so that scripts may
rely on it. The neighbour is `behemoth_cli.errors`, which turns these into lines and exit codes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class BehemothError(Exception):
    """Root of the tree. `str(error)` is one lower-case sentence that names object, expected and got.

    `hint` tells the reader what to do next; `code` is stable across releases. Both survive pickling, because errors
    cross process boundaries between the agent and its helpers in tests and batch work.
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def within(self, where: str) -> Self:
        """The same error, said of the object that it happened in: `where` goes before the message."""
        return type(self)(f"{where}: {self.message}", hint=self.hint, code=self.code)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.code))


class Invalid(BehemothError, ValueError):
    """The input is wrong; the caller changes it."""

    default_code = "invalid"


class NotFound(BehemothError, LookupError):
    """The named thing does not exist."""

    default_code = "not-found"


class Conflict(BehemothError):
    """Somebody else was first, or the fence is older than the state it meets."""

    default_code = "conflict"


class Denied(BehemothError):
    """Not allowed: credentials, file permissions, tokens."""

    default_code = "denied"


class Unavailable(BehemothError):
    """Try again later: the only class that is retried."""

    default_code = "unavailable"


class Corrupt(BehemothError):
    """Stored or received bytes are not what was written; never retried, never repaired silently."""

    default_code = "corrupt"


class Timeout(BehemothError, TimeoutError):
    """A bounded wait ended."""

    default_code = "timeout"


class Internal(BehemothError):
    """An invariant of Behemoth is broken: a bug, to be reported."""

    default_code = "internal"


def _rebuild(kind: type[BehemothError], message: str, hint: str, code: str) -> BehemothError:
    return kind(message, hint=hint, code=code)
