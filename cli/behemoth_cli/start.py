"""The console script: loads the program and hands over to it.

Loading takes a tenth of a second, and seconds on a busy machine; Ctrl-C ends that as it ends everything later, without
a trace. Must import nothing here that takes time. Neighbour: `root`, which does the rest.
"""

from __future__ import annotations

import sys

from behemoth_cli.exits import Exit


def main() -> None:
    """Ends the process."""
    try:
        from behemoth_cli import root

        root.main()
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
