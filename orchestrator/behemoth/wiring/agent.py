"""The agent's process: `python -m behemoth.wiring.agent`, with its settings in the environment. Logs to stderr."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from behemoth.agent.main import Agent
from behemoth.agent.settings import take_settings
from behemoth.base.errors import Invalid

EXIT_MISUSED = 2


def main() -> int:
    """The exit code; see `behemoth.agent.main`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = take_settings(os.environ)
    except Invalid as error:
        logging.getLogger(__name__).error("%s (%s)", error, error.hint)
        return EXIT_MISUSED
    return asyncio.run(Agent(settings, dict(os.environ)).run())


if __name__ == "__main__":
    sys.exit(main())
