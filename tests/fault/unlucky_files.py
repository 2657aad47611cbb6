"""A training program that opens files while it is imported, and leaves all kinds of them open. See `unlucky`."""

from __future__ import annotations

import gzip
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

from fault.unlucky import learns

FOLDER = Path(os.environ["UNLUCKY_FOLDER"])
AT_IMPORT = (FOLDER / f"at-import-{os.getpid()}").open("w")
KEPT: list[Any] = []


def leaves_files() -> None:
    rank = os.environ["RANK"]
    AT_IMPORT.write(f"rank {rank}\n")
    packed: IO[str] = gzip.open(FOLDER / f"packed-{rank}.gz", "wt")  # noqa: SIM115
    packed.write("the last line\n")
    archive = zipfile.ZipFile(FOLDER / f"archive-{rank}.zip", "w")
    archive.writestr("member", "the last member\n")
    KEPT.extend([packed, archive, tempfile.NamedTemporaryFile(dir=FOLDER, prefix="temporary-")])  # noqa: SIM115
    learns()
