"""Runs the programs of this folder, which fork worlds of ranks, and reads what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def told_by(program: str, *arguments: str) -> Any:
    """The document that a program prints."""
    command = [sys.executable, "-m", f"dcp.{program}", *arguments]
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
