"""A rank whose agent is played by the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdk.agent_end import Agent


@pytest.fixture
def agent() -> Iterator[Agent]:
    here = Agent()
    yield here
    here.close()
