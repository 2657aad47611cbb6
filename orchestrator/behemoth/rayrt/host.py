"""The process that talks to Ray, so that the run's own process does not.

Ray's client ends its process when the control store is lost, may retry a connection for minutes, and brings signal
handlers, threads and output along (docs/design/002-ray-in-run.md). Here that harms nobody: the host can be killed at
any time by its keeper, and an embedded Ray, being below it, dies with it. It is the one module that imports ray. It
must not decide anything. Neighbours: `behemoth.rayrt.runtime` starts it and asks, `behemoth.rayrt.actor` runs on the
nodes.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, assert_never

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from behemoth.rayrt.actor import NodeActor
from behemoth.rayrt.frames import (
    Answer,
    Done,
    Embed,
    Ended,
    Failed,
    Imported,
    Join,
    Leave,
    ListNodes,
    Request,
    Start,
    Stop,
    encode_line,
    request_decoder,
)
from behemoth.rayrt.link import HOST_FD_ENV

OBJECT_STORE_BYTES = 100 << 20
ACTOR_LIMIT_S = 45.0
"""Until an actor's process must run and have started an agent: Ray forks and imports, slow on a machine under load."""
STOP_LIMIT_S = 30.0
_ACTOR_THREADS = 8
"""Waits and calls at the same time in one actor: an agent that ends, its successor, and room."""


class Host:
    """Answers requests one by one on the main thread; Ray's threads tell ends in between."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._ray_ids: dict[str, str] = {}
        self._is_embedded = False

    def serve(self) -> None:
        """Until Leave, or until the other end is closed."""
        self._send(Imported())
        with self._connection.makefile("rb") as lines:
            for line in lines:
                request = request_decoder.decode(line)
                self._send(self._answer(request))
                if isinstance(request, Leave):
                    return

    def _send(self, answer: Answer) -> None:
        with self._send_lock:
            self._connection.sendall(encode_line(answer))

    def _answer(self, request: Request) -> Answer:
        try:
            return self._handle(request)
        except (RayError, OSError, RuntimeError, ImportError, ValueError) as error:
            return Failed(message=_first_line(error), hint=_hint(error))

    def _handle(self, request: Request) -> Done:
        match request:
            case Embed():
                self._embed(request)
            case Join():
                _init(address=request.address)
                self._learn_nodes()
            case Start():
                self._start(request)
            case Stop():
                self._stop(request)
            case ListNodes():
                return Done(nodes=self._learn_nodes())
            case Leave():
                self._leave()
            case _:
                assert_never(request)
        return Done()

    def _embed(self, request: Embed) -> None:
        self._is_embedded = True
        _init(
            address="local",
            num_cpus=len(request.nodes),
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=request.temp_dir,
        )
        ray_id = ray.get_runtime_context().get_node_id()
        self._ray_ids = dict.fromkeys(request.nodes, ray_id)
        for node in request.nodes:
            self._actor(node)

    def _learn_nodes(self) -> list[str]:
        """What is alive now, by name."""
        if not self._is_embedded:
            entries: list[dict[str, Any]] = ray.nodes()
            alive = {entry["NodeID"]: entry["NodeManagerHostname"] for entry in entries if entry["Alive"]}
            self._ray_ids = named_nodes(alive, self._ray_ids)
        return list(self._ray_ids)

    def _actor(self, node: str) -> Any:
        if node not in self._actors:
            affinity = NodeAffinitySchedulingStrategy(node_id=self._ray_ids[node], soft=False)
            options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": _ACTOR_THREADS}
            self._actors[node] = ray.remote(NodeActor).options(scheduling_strategy=affinity, **options).remote()
        return self._actors[node]

    def _start(self, request: Start) -> None:
        former = self._ray_ids.get(request.node)
        if request.node not in self._learn_nodes():
            raise RuntimeError(f"ray has no live node {request.node}")
        if self._ray_ids[request.node] != former:
            self._actors.pop(request.node, None)
        try:
            self._start_on_actor(request)
        except RayActorError:
            self._actors.pop(request.node, None)
            self._start_on_actor(request)

    def _start_on_actor(self, request: Start) -> None:
        actor = self._actor(request.node)
        call = actor.start.remote(request.incarnation, request.argv, request.env)
        try:
            ray.get(call, timeout=ACTOR_LIMIT_S)
        except GetTimeoutError:
            ray.kill(self._actors.pop(request.node))
            raise
        ended = actor.wait.remote(request.incarnation).future()
        ended.add_done_callback(partial(self._tell_end, request.node, request.incarnation))

    def _tell_end(self, node: str, incarnation: int, ended: Future[str]) -> None:
        error = ended.exception()
        reason = ended.result() if error is None else f"ray lost the actor that watched it: {_first_line(error)}"
        try:
            self._send(Ended(node=node, incarnation=incarnation, reason=reason))
        except OSError:
            logging.getLogger(__name__).info("end of agent not told, the run has gone: node=%s", node)

    def _stop(self, request: Stop) -> None:
        actor = self._actors.get(request.node)
        if actor is None:
            return
        try:
            ray.get(actor.stop.remote(request.incarnation), timeout=STOP_LIMIT_S)
        except RayActorError:
            self._actors.pop(request.node, None)

    def _leave(self) -> None:
        """An embedded Ray is not shut down here: its keeper kills it, which is faster and leaves nothing."""
        calls = [actor.stop_all.remote() for actor in self._actors.values()]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=STOP_LIMIT_S)
        if not self._is_embedded:
            ray.shutdown()


def named_nodes(alive: Mapping[str, str], former: Mapping[str, str]) -> dict[str, str]:
    """Ray's ids by our names, sorted, from host names by id and the names before.

    A node is called after its host, with a number where a host has several, because ids change when Ray is started
    again: so a run finds its machines once more. A name stays with an id that lives and is free for another after that.
    """
    named = {name: ray_id for name, ray_id in former.items() if ray_id in alive}
    known = set(named.values())
    for ray_id, host in sorted(alive.items()):
        if ray_id not in known:
            names = (host if number == 1 else f"{host}-{number}" for number in count(1))
            named[next(name for name in names if name not in named)] = ray_id
    return dict(sorted(named.items()))


def main() -> int:
    connection = socket.socket(fileno=int(os.environ.pop(HOST_FD_ENV)))
    connection.set_inheritable(False)
    Host(connection).serve()
    return 0


def _init(**options: Any) -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options)


def _first_line(error: BaseException) -> str:
    if isinstance(error, RayTaskError):
        error = error.cause
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "an address that starts with ray:// needs Ray's client: pip install 'ray[client]'"
    return "see `ray status` on the machine that the address names"


if __name__ == "__main__":
    sys.exit(main())
