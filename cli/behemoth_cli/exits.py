"""Exit codes: what a script may rely on. Append-only.

Which error leads to which code is the business of `behemoth_cli.errors`.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The meaning of each code is in `MEANINGS`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNHEALTHY = 3
    DENIED = 4
    TIMEOUT = 5
    RUN_FAILED = 100
    RUN_NOT_FINISHED = 101
    NOT_FOUND = 102
    RUN_CANCELLED = 103
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done as asked; for `run`: the run has succeeded",
    Exit.FAILED: "the command failed; the message says why",
    Exit.USAGE: "the command line, or a file that it names, is wrong; nothing was started",
    Exit.UNHEALTHY: "checked, and found different or unhealthy: damaged checkpoints, a damaged run directory",
    Exit.DENIED: "not allowed: permissions or credentials",
    Exit.TIMEOUT: "a bounded wait ended",
    Exit.RUN_FAILED: "the run has failed",
    Exit.RUN_NOT_FINISHED: "the run was asked to stop, or its last save is not durable yet: the same command goes on",
    Exit.NOT_FOUND: "what was named does not exist: a run, a checkpoint, a field, a file",
    Exit.RUN_CANCELLED: "the run was cancelled for good",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; after one Ctrl-C a run is saved and can be resumed",
}
