"""Importing `behemoth` loads nothing else: no contract of import-linter can say that of the root package itself."""

from __future__ import annotations

import subprocess
import sys


def test_the_root_package_imports_nothing() -> None:
    program = "import sys; before = set(sys.modules); import behemoth; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['behemoth']"
