"""The process between a starter and its program, so that nothing below the program ever outlives it.

An agent's children put themselves into process groups and sessions of their own, and a program that was killed cannot
clean up. So its parent does: the keeper is the subreaper of everything below (`PR_SET_CHILD_SUBREAPER`, prctl(2)),
waits for whichever ends first, the program or the starter (the lifeline pipe reads EOF), and then kills until no
descendant is left. When it dies itself, the program dies with it (`PR_SET_PDEATHSIG`).

It is run by path under `python -I -S` (15 ms, 11 MB), single-threaded, so that its one fork is safe. It must import
nothing but small modules of the standard library and nothing of ours. The neighbour is `behemoth.rayrt.kept`, the
starter's end.

Usage: keeper.py LIFELINE_FD STATUS_FD GRACE_MS HOLD_FDS REMOVE_DIR -- ARGV...; HOLD_FDS (comma-separated, kept from
the program: locks) and REMOVE_DIR may be empty. Other inherited descriptors pass to the program. Lines on STATUS_FD:
`failed REASON`, `exit CODE` or `signal NUMBER`, once all is dead.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_LIMIT_S = 10.0
"""A process in uninterruptible sleep cannot be killed; after this long the keeper reports and leaves it."""
ROUND_MS = 20
TICK_MS = 60_000


def main(argv: list[str]) -> int:
    lifeline_fd, status_fd, grace_ms = (int(word) for word in argv[:3])
    hold_fds, remove_dir, program = argv[3], argv[4], argv[6:]
    for fd in (status_fd, *map(int, filter(None, hold_fds.split(",")))):
        os.set_inheritable(fd, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup_fd = wake_on_signals()
    keeper_pid = os.getpid()
    program_pid = os.fork()
    if program_pid == 0:
        become(program, keeper_pid, status_fd)
    line = watch(program_pid, lifeline_fd, wakeup_fd, grace_ms)
    line = kill_below(program_pid, wakeup_fd) or line
    if remove_dir:
        import shutil

        shutil.rmtree(remove_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.write(status_fd, f"{line}\n".encode())
    return 0


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def wake_on_signals() -> int:
    """A descriptor that becomes readable on SIGCHLD; SIGTERM counts as the end of the starter."""
    wakeup_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return wakeup_fd


def become(program: list[str], keeper_pid: int, status_fd: int) -> NoReturn:
    """In the child: its own session, default signals, dead with the keeper; then exec."""
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == keeper_pid:
            os.execvp(program[0], program)
    except OSError as error:
        os.write(status_fd, f"failed {program[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def watch(program_pid: int, lifeline_fd: int, wakeup_fd: int, grace_ms: int) -> str:
    """Return when the program has ended, or `grace_ms` after the starter has; the status line if known by then."""
    poller = select.poll()
    poller.register(lifeline_fd, select.POLLIN)
    poller.register(wakeup_fd, select.POLLIN)
    deadline_s: float | None = None
    while True:
        wait_ms = TICK_MS if deadline_s is None else max(0, int((deadline_s - time.monotonic()) * 1000))
        ready = {fd for fd, _ in poller.poll(wait_ms)}
        signals = drain(wakeup_fd) if wakeup_fd in ready else b""
        if line := reap(program_pid):
            return line
        if deadline_s is None and (lifeline_fd in ready or signal.SIGTERM in signals):
            poller.unregister(lifeline_fd)
            deadline_s = time.monotonic() + grace_ms / 1000
        if deadline_s is not None and time.monotonic() >= deadline_s:
            return ""


def drain(wakeup_fd: int) -> bytes:
    try:
        return os.read(wakeup_fd, 4096)
    except BlockingIOError:
        return b""


def reap(program_pid: int) -> str:
    """Collect every child that has ended, adopted ones too; the status line if the program is among them.

    Raises ChildProcessError when no child is left, unless the program was among those collected.
    """
    line = ""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if line:
                return line
            raise
        if pid == 0:
            return line
        if pid == program_pid:
            code = os.waitstatus_to_exitcode(status)
            line = f"exit {code}" if code >= 0 else f"signal {-code}"


def kill_below(program_pid: int, wakeup_fd: int) -> str:
    """Kill descendants, round by round because they may fork meanwhile, until none is left."""
    line = ""
    deadline_s = time.monotonic() + KILL_LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            line = reap(program_pid) or line
        except ChildProcessError:
            return line
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        select.select([wakeup_fd], [], [], ROUND_MS / 1000)
        drain(wakeup_fd)
    return line


def descendants(root_pid: int) -> list[int]:
    """Process ids below `root_pid`, parents before children, from one scan of /proc (proc_pid_stat(5))."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parent_pid = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent_pid, []).append(int(name))
    found = [root_pid]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found[1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
