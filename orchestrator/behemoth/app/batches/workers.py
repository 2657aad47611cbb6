"""The Executor on machines: a worker program per node of a Runtime (Ray, or plain processes), told batches over TCP.

The runtime starts workers and tells which are lost, as it does with agents; a worker authenticates with a token of its
own. The batches of a lost worker go to others, and the worker is started again, up to MAX_LOSSES times in a row.
Everything happens on the caller's thread, between two results. Neighbours: `worker` (the other end), `threads`.
"""

from __future__ import annotations

import math
import secrets
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from behemoth.app.batches.messages import (
    Failed,
    Finished,
    Hello,
    Open,
    RunBatch,
    Stop,
    Stopped,
    ToWorker,
    from_worker_decoder,
)
from behemoth.app.batches.worker import ADDRESS_ENV, INCARNATION_ENV, NODE_ENV, TOKEN_ENV
from behemoth.base.errors import BehemothError, Corrupt, Unavailable
from behemoth.base.ids import NodeId
from behemoth.fleet.tokens import Tokens
from behemoth.ports import Batch, Runtime
from behemoth.wire.frames import MAX_HELLO_BYTES, FrameReader, decode_body, encode_frame

MAX_LOSSES = 3
"""Losses in a row without a result: of a node's workers, before the node is no longer used, and of workers that ran one
batch, before the batch is taken to be the cause."""
START_LIMIT_S = 120.0
"""Time for a worker to connect after it was started."""
BATCH_LIMIT_S = 1800.0
"""A worker that returns nothing for so long is taken for lost: storage that hangs must not block a job forever."""
SEND_LIMIT_S = 30.0
STOP_LIMIT_S = 30.0
"""Time for a worker to give up what is under way; then it is killed."""
_POLL_S = 0.1
_LOOK_S = 0.5
"""How often the runtime is asked which workers are lost; a closed connection is seen at once."""
_READ_BYTES = 1 << 16


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    """A node and its present worker; `heard_s` is when that was started, or last said something."""

    name: NodeId
    incarnation: int = 0
    heard_s: float = 0.0
    connection: socket.socket | None = None
    under_way: dict[int, Batch] = field(default_factory=dict)
    losses: int = 0
    stops: int = 0
    """The turn whose end it has confirmed (`Stopped`)."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Caller:
    """A connection that has not said who it is."""

    connection: socket.socket
    reader: FrameReader = field(default_factory=lambda: FrameReader(limit_bytes=MAX_HELLO_BYTES))


@dataclass(slots=True, kw_only=True, eq=False)
class _Peer:
    """The connection of a node's worker."""

    node: _Node
    reader: FrameReader = field(default_factory=FrameReader)


class WorkerExecutor:
    """Implements `behemoth.ports.Executor` on `runtime`, which it owns.

    Workers connect to `address`, at which this process listens on `host`; each runs `threads` batches at a time. `argv`
    is the worker's program.
    """

    def __init__(self, runtime: Runtime, *, threads: int, host: str, address: str, argv: Sequence[str]) -> None:
        self._runtime = runtime
        self._threads = threads
        self._address = address
        self._argv = argv
        self._tokens = Tokens(secrets.token_bytes(32))
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((host, 0))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._nodes: dict[NodeId, _Node] = {}
        self._looked_s = 0.0
        self._reason = "no node was there"
        self._found: deque[Batch] = deque()
        """Results that the caller may not have received."""
        self._job = Open(turn=0, job=b"", threads=threads)
        self._is_closed = False

    def run(self, job: bytes, batches: Iterable[Batch]) -> Iterator[Batch]:
        self._job = Open(turn=self._job.turn + 1, job=job, threads=self._threads)
        self._start_nodes()
        self._found.clear()
        left, again = iter(batches), deque[Batch]()
        lost: Counter[int] = Counter()
        for node in self._nodes.values():
            node.under_way.clear()  # of a job that was given up: what comes of it still is of another turn
            self._send(node, self._job)
        while True:
            self._hand_out(left, again)
            if not any(node.under_way for node in self._nodes.values()) and not again:
                if (batch := next(left, None)) is None:
                    return
                again.append(batch)
            errors = self._listen()
            while self._found:
                yield self._found[0]
                self._found.popleft()
            if errors:
                raise errors[0]
            for batch in self._lost():
                lost[batch.number] += 1
                if lost[batch.number] >= MAX_LOSSES:
                    raise Unavailable(
                        f"batch {batch.number}: expected a worker to survive it, got {MAX_LOSSES} lost ones: "
                        f"{self._reason}",
                        hint="look at the memory of the nodes; the same command goes on where this one stopped",
                        code="batch-kills-workers",
                    )
                again.append(batch)

    def stop(self) -> list[Batch]:
        turn = self._job.turn
        asked = [node for node in self._nodes.values() if node.under_way]
        for node in asked:
            self._send(node, Stop(turn=turn))
        limit_s = time.monotonic() + STOP_LIMIT_S
        while any(node.connection is not None and node.stops != turn for node in asked):
            if time.monotonic() > limit_s:
                break
            self._listen()  # errors of a job that was given up do not matter
        for node in asked:
            if node.stops != turn:  # it does not answer, or its connection is lost and it may be at work all the same
                self._hang_up(node)
                with suppress(BehemothError):
                    self._runtime.stop_agent(node.name, incarnation=node.incarnation)
                node.heard_s = -math.inf  # a job that follows finds it late, and starts another one
            node.under_way.clear()
        found = list(self._found)
        self._found.clear()
        return found

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self._runtime.close()

    def _start_nodes(self) -> None:
        """Start a worker on each node in the first run; later runs use the same ones. Raises Unavailable without
        nodes."""
        if not self._nodes:
            self._nodes = {name: _Node(name=name) for name in self._runtime.nodes()}
            for node in list(self._nodes.values()):
                self._start(node)
        self._require_nodes()

    def _start(self, node: _Node) -> None:
        """Start the next incarnation of a node's worker; a node that cannot start one is dropped."""
        node.incarnation += 1
        node.heard_s = time.monotonic()
        env = {
            ADDRESS_ENV: f"{self._address}:{self._listener.getsockname()[1]}",
            TOKEN_ENV: self._tokens.mint(node.name, node.incarnation),
            NODE_ENV: node.name,
            INCARNATION_ENV: str(node.incarnation),
        }
        try:
            self._runtime.start_agent(node.name, incarnation=node.incarnation, argv=self._argv, env=env)
        except BehemothError as error:
            self._reason = f"node {node.name}: {error.message}"
            del self._nodes[node.name]

    def _require_nodes(self) -> None:
        if not self._nodes:
            raise Unavailable(
                f"workers: expected a node that keeps one, got none: {self._reason}",
                hint="the same command goes on where this one stopped",
                code="no-workers",
            )

    def _hand_out(self, left: Iterator[Batch], again: deque[Batch]) -> None:
        """Send each worker up to twice as many batches as it has threads, so that none waits for the network."""
        for node in list(self._nodes.values()):
            while node.connection is not None and len(node.under_way) < 2 * self._threads:
                batch = again.popleft() if again else next(left, None)
                if batch is None:
                    return
                if not node.under_way:
                    node.heard_s = time.monotonic()
                node.under_way[batch.number] = batch
                self._send(node, RunBatch(number=batch.number, data=batch.data))

    def _send(self, node: _Node, message: ToWorker) -> None:
        """A connection that fails, or blocks for SEND_LIMIT_S, is closed; the worker then counts as lost."""
        if node.connection is not None:
            try:
                node.connection.settimeout(SEND_LIMIT_S)
                node.connection.sendall(encode_frame(message))
            except OSError:
                self._hang_up(node)

    def _listen(self) -> list[BehemothError]:
        """Handle what has arrived within _POLL_S: results go to `_found`; returns the errors of batches."""
        errors: list[BehemothError] = []
        for key, _ in self._selector.select(_POLL_S):
            assert isinstance(key.fileobj, socket.socket)
            match key.data:
                case _Caller() as caller:
                    self._greet(caller)
                case _Peer() as peer:
                    errors += self._read(peer, key.fileobj)
                case _:
                    with suppress(OSError):  # the peer has closed the connection already
                        connection, _address = self._listener.accept()
                        self._selector.register(connection, selectors.EVENT_READ, _Caller(connection=connection))
        return errors

    def _greet(self, caller: _Caller) -> None:
        """Accept a worker that this executor started; close any other connection."""
        connection = caller.connection
        try:
            bodies = caller.reader.feed(_received(connection))
            hello = decode_body(from_worker_decoder, bodies[0]) if bodies else None
        except (OSError, Corrupt):
            self._drop(connection)
            return
        if hello is None:
            return
        node = self._nodes.get(NodeId(hello.node)) if isinstance(hello, Hello) else None
        if (
            not isinstance(hello, Hello)
            or node is None
            or hello.incarnation != node.incarnation
            or not self._tokens.is_valid(hello.token, node.name, node.incarnation)
        ):
            self._drop(connection)
            return
        node.connection, node.heard_s = connection, time.monotonic()
        self._selector.modify(connection, selectors.EVENT_READ, _Peer(node=node))
        self._send(node, self._job)

    def _read(self, peer: _Peer, connection: socket.socket) -> list[BehemothError]:
        node = peer.node
        try:
            bodies = peer.reader.feed(_received(connection))
            messages = [decode_body(from_worker_decoder, body) for body in bodies]
        except (OSError, Corrupt):
            self._hang_up(node)
            return []
        errors: list[BehemothError] = []
        for message in messages:
            node.heard_s = time.monotonic()
            match message:
                case Finished(turn=turn, number=number, data=data):
                    if turn == self._job.turn and node.under_way.pop(number, None) is not None:
                        node.losses = 0
                        self._found.append(Batch(number=number, data=data))
                case Failed() as failed:
                    if failed.turn == self._job.turn:
                        errors.append(failed.error())
                case Stopped(turn=turn):
                    node.stops = turn
                case Hello():
                    self._hang_up(node)
                    break
        return errors

    def _lost(self) -> Iterator[Batch]:
        """Start lost workers again; the batches that they had under way."""
        gone = self._gone()
        for node in list(self._nodes.values()):
            since_s = time.monotonic() - node.heard_s
            is_late = node.connection is None and since_s > START_LIMIT_S
            is_stuck = bool(node.under_way) and since_s > BATCH_LIMIT_S
            if node.name in gone or is_late or is_stuck:
                self._reason = f"node {node.name}: {gone.get(node.name, 'its worker does not answer')}"
                yield from self._replace(node)

    def _gone(self) -> dict[NodeId, str]:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return {}
        self._looked_s = now_s
        return {
            one.node: one.reason
            for one in self._runtime.gone(timeout_s=0)
            if one.node in self._nodes and one.incarnation == self._nodes[one.node].incarnation
        }

    def _replace(self, node: _Node) -> list[Batch]:
        """Kill a node's worker and start the next one, unless MAX_LOSSES is reached; the batches that it had under
        way."""
        self._hang_up(node)
        with suppress(BehemothError):
            self._runtime.stop_agent(node.name, incarnation=node.incarnation)
        batches = list(node.under_way.values())
        node.under_way.clear()
        node.losses += 1
        if node.losses >= MAX_LOSSES:
            del self._nodes[node.name]
        else:
            self._start(node)
        self._require_nodes()
        return batches

    def _hang_up(self, node: _Node) -> None:
        """The worker ends when its connection does, and the runtime tells that."""
        if node.connection is not None:
            self._drop(node.connection)
            node.connection, node.heard_s = None, time.monotonic()

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


def _received(connection: socket.socket) -> bytes:
    """The bytes that have arrived. Raises ConnectionError at the end of the stream."""
    data = connection.recv(_READ_BYTES)
    if not data:
        raise ConnectionError("the peer closed the connection")
    return data
