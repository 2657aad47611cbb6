"""When nodes read together, and who is not asked without need."""

from __future__ import annotations

import pytest

from behemoth.policy.shared_reads import are_shared
from behemoth.wire.setup import ShareReads


@pytest.mark.parametrize(
    ("mode", "num_nodes", "is_served", "shared", "num_asked"),
    [
        ("auto", 2, True, True, 1),
        ("auto", 2, False, False, 1),
        ("auto", 1, True, False, 0),
        ("always", 2, False, True, 0),
        ("always", 1, True, False, 0),
        ("never", 2, True, False, 0),
    ],
)
def test_nodes_read_together_where_the_run_says_so_or_where_all_ask_the_same_servers(
    mode: ShareReads, num_nodes: int, is_served: bool, shared: bool, num_asked: int
) -> None:
    asked: list[str] = []

    def ask() -> bool:
        asked.append("once")
        return is_served

    assert are_shared(mode, num_nodes=num_nodes, is_served=ask) is shared
    assert len(asked) == num_asked
