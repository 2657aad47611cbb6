"""Ending children that nobody else ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from behemoth.agent import processes
from behemoth.agent.processes import kill_strays

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def ended_child() -> int:
    """A child that has ended and waits to be reaped."""
    child = subprocess.Popen(SLEEP)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.returncode = -9  # so that the Popen object does not reap it
    return child.pid


def test_children_that_a_dying_stray_hands_over_are_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    keep, parent, orphan = subprocess.Popen(SLEEP), ended_child(), ended_child()
    looks = [{keep.pid, parent}, {keep.pid, orphan}, {keep.pid}]
    monkeypatch.setattr(processes, "children", lambda: looks.pop(0))
    try:
        assert kill_strays({keep.pid}) == 0
        assert looks == []
        assert keep.poll() is None
        for pid in (parent, orphan):
            with pytest.raises(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    finally:
        keep.kill()
        keep.wait(60)
