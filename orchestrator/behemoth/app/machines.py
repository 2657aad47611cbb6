"""Runs the Runtime on a thread of its own: its calls block for seconds, and the port wants them from one thread.

Orders come in through a queue, losses and failures go out as evidence; between orders the thread polls for agents that
ended.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from behemoth.base.errors import BehemothError
from behemoth.base.ids import NodeId
from behemoth.ports import Runtime
from behemoth.state.evidence import Evidence, NodeLost, ProvisionFailed

LISTEN_S = 0.05
"""How long a new order may wait while the thread listens for losses."""
CLOSE_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """Start this agent."""

    node: NodeId
    incarnation: int
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """End this agent by force."""

    node: NodeId
    incarnation: int


class Machines:
    """Owns a Runtime from `start` to `close`. `tell` is called from this object's thread."""

    def __init__(self, runtime: Runtime, tell: Callable[[Evidence], None]) -> None:
        self._runtime = runtime
        self._tell = tell
        self._orders: queue.SimpleQueue[StartOrder | StopOrder | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="machines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def order(self, order: StartOrder | StopOrder) -> None:
        """Returns at once; a start that fails is told as ProvisionFailed."""
        self._orders.put(order)

    def close(self) -> None:
        """Carries out what was ordered, ends every agent, and blocks until that is done, at most `CLOSE_TIMEOUT_S`."""
        if not self._thread.is_alive():
            self._runtime.close()
            return
        self._orders.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        try:
            while self._carry_out_waiting():
                self._listen()
        finally:
            self._runtime.close()

    def _listen(self) -> None:
        """A runtime that fails to answer is asked again; until then nodes are found lost by their connections and
        silence."""
        try:
            for gone in self._runtime.gone(timeout_s=LISTEN_S):
                self._tell(NodeLost(node=gone.node, incarnation=gone.incarnation, reason=gone.reason))
        except BehemothError as error:
            _log.warning("runtime: %s", error)
            time.sleep(LISTEN_S)

    def _carry_out_waiting(self) -> bool:
        """False once the end was ordered."""
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return True
            if order is None:
                return False
            self._carry_out(order)

    def _carry_out(self, order: StartOrder | StopOrder) -> None:
        try:
            match order:
                case StartOrder():
                    self._runtime.start_agent(order.node, incarnation=order.incarnation, argv=order.argv, env=order.env)
                case StopOrder():
                    self._runtime.stop_agent(order.node, incarnation=order.incarnation)
        except BehemothError as error:
            if isinstance(order, StartOrder):
                self._tell(ProvisionFailed(node=order.node, incarnation=order.incarnation, reason=str(error)))
            else:
                _log.warning("node %s: %s", order.node, error)
