"""Runs the command line as people do: with pipes, or on a terminal of a fixed size, and compares with golden files.

Set BEHEMOTH_UPDATE_GOLDEN=1 to write the files anew, then read the difference.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import safetensors.numpy

from behemoth_cli.out.console import Console, Format
from behemoth_cli.out.table import Listing, Page
from behemoth_cli.out.terminal import print_rich

GOLDEN = Path(__file__).parent / "golden"
PROGRAM = str(Path(sys.executable).with_name("behemoth"))
NUMPY_RUN = Path(__file__).parents[2] / "manifests" / "examples" / "numpy.yaml"
LIMIT_S = 90
TRAINED_STEPS = 80
"""Of the run of the fixture `trained`. The last step is always saved; which one before it depends on how fast the
machine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what would change the output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES", "TERM")}
    return {**kept, "TERM": "xterm-256color", **changes}


def behemoth(*arguments: str, cwd: Path, **changes: str) -> Ended:
    """With both streams piped."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def import_large(folder: Path) -> None:
    """Make `folder / "store"`, a store of 96 MiB in 24 arrays, of a file beside it."""
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(512, 1024)) for number in range(24)}
    safetensors.numpy.save_file(arrays, folder / "large.safetensors")
    ended = behemoth("ckpt", "import", "large.safetensors", "--to", "store", cwd=folder)
    assert ended.code == 0, ended.err


def on_terminal(*arguments: str, cwd: Path, columns: int = 100, rows: int = 40, **changes: str) -> Ended:
    """With both streams on one pseudo terminal; everything that was drawn is in `out`."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=cwd,
        env=environment(**changes),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    drawn = _read_all(leader)
    return Ended(code=process.wait(timeout=LIMIT_S), out=drawn.decode().replace("\r\n", "\n"), err="")


def small_run(folder: Path, *, name: str = "small", steps: int = 40, every: int = 10) -> Path:
    """The numpy example, cut short, as a file of its own."""
    text = NUMPY_RUN.read_text()
    text = text.replace("name: numpy", f"name: {name}").replace("steps: 200", f"steps: {steps}")
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("      steps: 20\n", f"      steps: {every}\n"))
    return file


def matches_golden(text: str, name: str) -> None:
    """Compare with a golden file, or write it."""
    file = GOLDEN / name
    if os.environ.get("BEHEMOTH_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def piped(shown: Page | Listing, form: Format = "") -> str:
    """What a pipe gets."""
    out = StringIO()
    Console(out, StringIO(), environment={}).show(shown, form)
    return out.getvalue()


def on_screen(shown: Page | Listing, width: int) -> str:
    """What a terminal of this width gets."""
    out = StringIO()
    print_rich(out, shown, is_wide=False, color=True, width=width)
    return out.getvalue()


def wait_for(is_true: Callable[[], bool], *, limit_s: float = 30.0) -> None:
    """Poll until it is true."""
    deadline_s = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"not true within {limit_s} s"
        time.sleep(0.02)


def _read_all(leader: int) -> bytes:
    drawn = b""
    while True:
        try:
            data = os.read(leader, 1 << 16)
        except OSError:  # EIO: the last holder of the other end is gone
            break
        if not data:
            break
        drawn += data
    os.close(leader)
    return drawn
