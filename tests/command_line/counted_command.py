"""`behemoth` with workers that a test counts: `python -m cli.counted_command`. The workers are `counted_worker`."""

from __future__ import annotations

from behemoth.checkpoint.interop import resharded
from behemoth.wiring import batch
from behemoth_cli.commands import ckpt_import
from behemoth_cli.root import main

COUNTED = "command_line.counted_worker"
SMALL_BYTES = 8 << 20
"""Of a batch: some for each worker, of the little that a test reshards."""

if __name__ == "__main__":
    batch.WORKER = ckpt_import._DCP_WORKER = COUNTED
    resharded.MIN_BATCH_BYTES = SMALL_BYTES
    main()
