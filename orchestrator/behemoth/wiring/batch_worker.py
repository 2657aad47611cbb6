"""The process of a batch worker: `python -m behemoth.wiring.batch_worker`, with its settings in the environment."""

from __future__ import annotations

import os
import sys

from behemoth.app.batches.worker import serve, take_settings


def main() -> int:
    """The exit status: 0 when the executor has closed the connection."""
    serve(take_settings(os.environ))
    return 0


if __name__ == "__main__":
    sys.exit(main())
