"""Runs the programs of this folder, which fork worlds of ranks, and reads what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def told_by(program: str, *arguments: str) -> Any:
    """The document that a program prints."""
    command = [sys.executable, str(Path(__file__).parent / f"{program}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
