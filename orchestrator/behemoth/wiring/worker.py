"""The fork server's process and, after a fork, the worker's: `python -m behemoth.wiring.worker FD AGENT_PID`.

Started by the agent only. A worker unwinds the server's frames before it calls the program, so that tracebacks, exit
handlers and exit codes are those of any Python program. The neighbour is `ending`, which ends it.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys

from behemoth.agent.forkserver import Job, serve, tie_to_agent
from behemoth.wire.session import DUMP_SIGNAL
from behemoth.wiring.ending import leave


def main(argv: list[str]) -> int:
    """Returns the exit code of the fork server; a worker that was forked from it does not return."""
    fd, agent_pid = int(argv[0]), int(argv[1])
    tie_to_agent(agent_pid)
    # Imports may hang too. Workers inherit it, and what they have as standard error by then.
    faulthandler.register(DUMP_SIGNAL, file=sys.stderr, all_threads=True, chain=False)
    # Imported before the first fork, so that a worker finds the SDK and what it needs warm; and once the tie holds,
    # since a process that is stopped while it imports must die with its agent too.
    importlib.import_module("behemoth.sdk")
    job = serve(socket.socket(fileno=fd), agent_pid=agent_pid)
    if job is not None:
        leave(_ended(job))
    return 0


def _ended(job: Job) -> int:
    """Run the program to its end, whatever that is; the exit code that Python gives it."""
    try:
        return _work(job)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001  # the edge of a process: told as Python tells it
        sys.excepthook(*sys.exc_info())
        return 1


def _work(job: Job) -> int:
    """Run the program."""
    if job.entrypoint is None:
        _execute(job.argv)
    faulthandler.enable(file=sys.stderr, all_threads=True)
    assert job.entrypoint is not None
    sys.argv = [job.entrypoint]
    module, _, function = job.entrypoint.partition(":")
    result = getattr(importlib.import_module(module), function or "main")()
    return result if isinstance(result, int) else 0


def _execute(argv: tuple[str, ...]) -> None:
    """Become the program. `python` is the agent's own where its folder is not on PATH, as of a virtual environment that
    nobody activated: another one would have neither torch nor this package."""
    folder, path = os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # this interpreter ignores them, which an exec would pass on
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        raise SystemExit(f"command {argv[0]!r}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
