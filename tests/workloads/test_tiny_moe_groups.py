"""Joining the other ranks: who comes before rank 0 waits for it, closely, and not for ever."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from behemoth.workloads.tiny_moe import groups


class _Clock:
    """Stands in for the module `time`: a pause passes at once, and `on_pause` hears how many there were."""

    def __init__(self, on_pause: Callable[[int], None]) -> None:
        self._on_pause = on_pause
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.pauses.append(seconds)
        self._on_pause(len(self.pauses))


def test_a_rank_that_comes_before_rank_0_listens_knocks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as rank_0:
        rank_0.bind(("127.0.0.1", 0))
        rank_0.settimeout(5.0)
        clock = _Clock(lambda num_pauses: rank_0.listen() if num_pauses == 4 else None)
        monkeypatch.setattr(groups, "time", clock)
        groups.await_listener("127.0.0.1", rank_0.getsockname()[1])
        rank_0.accept()[0].close()
    assert len(clock.pauses) == 4
    assert clock.now_s < 0.1


def test_a_rank_0_that_never_listens_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as rank_0:
        rank_0.bind(("127.0.0.1", 0))
        clock = _Clock(lambda _: None)
        monkeypatch.setattr(groups, "time", clock)
        groups.await_listener("127.0.0.1", rank_0.getsockname()[1])
    assert groups.KNOCK_LIMIT_S <= clock.now_s < groups.KNOCK_LIMIT_S + 1
    assert max(clock.pauses) <= 0.1
