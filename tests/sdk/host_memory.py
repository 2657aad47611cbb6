"""Bytes of what a state declares to be in host memory."""

from __future__ import annotations

from behemoth.checkpoint.held import Memory


def raw_of(memory: Memory) -> bytes:
    assert isinstance(memory, memoryview)
    return bytes(memory)
