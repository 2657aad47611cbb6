"""The ports stay narrow: what an adapter must do fits on one page (house.md: at most six methods each)."""

from __future__ import annotations

import inspect
from typing import Protocol

import pytest

from behemoth import ports

PORTS = [one for _, one in inspect.getmembers(ports, inspect.isclass) if Protocol in one.__bases__]


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.__name__)
def test_a_port_has_at_most_six_methods(port: type) -> None:
    methods = [name for name, value in vars(port).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert 1 <= len(methods) <= 6, methods


def test_the_store_and_the_runtime_are_ports() -> None:
    assert {"ObjectStore", "Runtime"} <= {port.__name__ for port in PORTS}
