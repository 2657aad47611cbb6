"""The embedded Ray that the tests of a module share, lent to one owner after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from behemoth.base.ids import NodeId
from behemoth.ports import NodeGone, Runtime


class Borrowed:
    """A Ray that outlives its owner: closing ends what that started alone. Incarnations rise over all owners."""

    rounds = count(1)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._offset = 1000 * next(self.rounds)
        self._started: set[tuple[NodeId, int]] = set()

    def nodes(self) -> Sequence[NodeId]:
        return self._runtime.nodes()

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        self._started.add((node, incarnation))
        self._runtime.start_agent(node, incarnation=self._offset + incarnation, argv=argv, env=env)

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        self._runtime.stop_agent(node, incarnation=self._offset + incarnation)

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        told = self._runtime.gone(timeout_s=timeout_s)
        return [replace(one, incarnation=one.incarnation - self._offset) for one in told]

    def close(self) -> None:
        for node, incarnation in self._started:
            self.stop_agent(node, incarnation=incarnation)
