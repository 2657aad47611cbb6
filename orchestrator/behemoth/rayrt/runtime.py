"""The Runtime on Ray: embedded with logical nodes on this machine, or joined by address with one node per Ray node.

Ray starts agents and tells which are lost; recovery goes through the coordinator. This process does not import ray: a
host process does (`behemoth.rayrt.link`, `behemoth.rayrt.host`). Its neighbour without Ray is
`behemoth.rayrt.processes`.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from behemoth.base.errors import Invalid, Unavailable
from behemoth.base.ids import NodeId
from behemoth.ports import NodeGone
from behemoth.rayrt.frames import Embed, Join, Leave, ListNodes, Start, Stop
from behemoth.rayrt.kept import require_program
from behemoth.rayrt.link import HostLink, open_link
from behemoth.rayrt.processes import require_node
from behemoth.rayrt.roster import Roster

IMPORT_LIMIT_S = 60.0
"""Loading ray takes 0.4 s from a warm page cache, and 20 s from a cold disk."""
EMBED_LIMIT_S = 90.0
"""Ray's own processes start in 3 to 11 s on two cores."""
JOIN_LIMIT_S = 9.0
"""A live Ray answers within a second; ray itself would retry for a minute."""
_PROBE_LIMIT_S = 5.0
_START_LIMIT_S = 100.0
_STOP_LIMIT_S = 35.0
_LIST_LIMIT_S = 10.0
_RAY_CLIENT_PORT = 10001
_JOINED_GRACE_S = 3.0
"""A joined Ray learns from a farewell that the run has ended; an embedded one is killed."""


class RayRuntime:
    """Implements `behemoth.ports.Runtime`; made by `embed_ray` or `join_ray`.

    `fixed_nodes` are an embedded Ray's logical nodes; None asks Ray each time. `connect` makes a link anew when Ray
    or our end of it has died. An agent's environment is that of the machine's Ray with `env` of `start_agent` laid
    over it.
    """

    def __init__(
        self, link: HostLink, *, connect: Callable[[], HostLink], fixed_nodes: Sequence[NodeId] | None
    ) -> None:
        self._link = link
        self._connect = connect
        self._fixed_nodes = None if fixed_nodes is None else tuple(fixed_nodes)
        self._roster = Roster()

    @property
    def link(self) -> HostLink:
        """The link to the Ray host, for tests and diagnosis."""
        return self._link

    def nodes(self) -> Sequence[NodeId]:
        """Raises Unavailable when a joined Ray no longer answers."""
        if self._fixed_nodes is not None:
            return self._fixed_nodes
        return [NodeId(name) for name in self._link.ask(ListNodes(), timeout_s=_LIST_LIMIT_S).nodes]

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        """As the port says; an older agent of the node is stopped first. Raises NotFound for a node that an embedded
        Ray does not have, Conflict for a stale incarnation, Unavailable when Ray or the machine is gone."""
        require_program(argv)
        if self._fixed_nodes is not None:
            require_node(node, self._fixed_nodes)
        if self._roster.is_started(node, incarnation):
            return
        older = self._roster.running().get(node)
        if older is not None:
            self.stop_agent(node, incarnation=older)
        self._reconnect_if_lost()
        request = Start(node=node, incarnation=incarnation, argv=list(argv), env=dict(env))
        self._link.ask(request, timeout_s=_START_LIMIT_S)
        self._roster.started(node, incarnation)

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        """As the port says. A lost host's agents are dead already. Raises Unavailable when Ray cannot say."""
        if not self._roster.ended(node, incarnation) or self._link.lost:
            return
        self._link.ask(Stop(node=node, incarnation=incarnation), timeout_s=_STOP_LIMIT_S)

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        deadline_s = time.monotonic() + timeout_s
        while not (told := self._news(max(0.0, deadline_s - time.monotonic()))) and time.monotonic() < deadline_s:
            if self._link.lost:
                time.sleep(max(0.0, deadline_s - time.monotonic()))
        return told

    def close(self) -> None:
        with contextlib.suppress(Unavailable):
            self._link.ask(Leave(), timeout_s=_STOP_LIMIT_S)
        self._link.close()

    def _reconnect_if_lost(self) -> None:
        """Only once the loss of all agents was told: the roster of the lost link is empty then."""
        if self._link.lost and not self._roster.running():
            self._link.close()
            self._link = self._connect()

    def _news(self, timeout_s: float) -> list[NodeGone]:
        """Ends that nobody asked for; with a lost host all agents are among them."""
        told = [
            NodeGone(node=NodeId(end.node), incarnation=end.incarnation, reason=end.reason)
            for end in self._link.ends(timeout_s=timeout_s)
            if self._roster.ended(NodeId(end.node), end.incarnation)
        ]
        running = self._roster.running() if self._link.lost else {}
        for node, incarnation in running.items():
            self._roster.ended(node, incarnation)
            told.append(NodeGone(node=node, incarnation=incarnation, reason=self._link.lost))
        return told


def embed_ray(nodes: Sequence[NodeId]) -> RayRuntime:
    """Start a Ray of our own on this machine with `nodes` as logical nodes; blocks for 2 to 11 s.

    All of it dies with this process, however that ends. Raises Unavailable when Ray does not start.
    """

    def connect() -> HostLink:
        # A token of its own: Ray listens on every interface, and would else write one into the user's home.
        link = open_link(grace_s=0, env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        with _closed_on_error(link):
            link.await_import(timeout_s=IMPORT_LIMIT_S)
            link.ask(Embed(nodes=list(nodes), temp_dir=str(link.temp_dir)), timeout_s=EMBED_LIMIT_S)
        return link

    return RayRuntime(connect(), connect=connect, fixed_nodes=nodes)


def join_ray(address: str) -> RayRuntime:
    """Connect to a running Ray: `host:port` of its control store, `ray://host[:port]`, or `auto` for this machine's.

    Blocks for a few seconds. Raises Invalid for another form, Unavailable when nothing of Ray answers there within
    about 10 s.
    """

    def connect() -> HostLink:
        _probe(address)
        link = open_link(grace_s=_JOINED_GRACE_S, env={})
        try:
            with _closed_on_error(link):
                link.await_import(timeout_s=IMPORT_LIMIT_S)
                link.ask(Join(address=address), timeout_s=JOIN_LIMIT_S)
        except Unavailable as error:
            message = f"ray at {address}: {error.message}"
            raise Unavailable(message, hint=_join_hint(address, error.message), code="no-ray") from error
        return link

    return RayRuntime(connect(), connect=connect, fixed_nodes=None)


@contextlib.contextmanager
def _closed_on_error(link: HostLink) -> Iterator[None]:
    try:
        yield
    except BaseException:
        link.close()
        raise


def _probe(address: str) -> None:
    """Try to connect before ray does, which would retry for minutes."""
    if address == "auto":
        return
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=_PROBE_LIMIT_S).close()
    except OSError as error:
        message = f"ray at {address}: expected a connection within {_PROBE_LIMIT_S:.0f} s, got {error}"
        raise Unavailable(message, hint=_join_hint(address), code="no-ray") from error


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    if scheme == "ray" and not host:
        host, port = rest, str(_RAY_CLIENT_PORT)
    if scheme not in ("", "ray") or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise Invalid(
            f"ray address: expected host:port, ray://host[:port] or auto, got {address!r}",
            hint="`ray start --head` prints the address; port 6379 is its default",
        )
    return host.strip("[]"), int(port)


def _join_hint(address: str, reason: str = "") -> str:
    if "Unauthenticated" in reason:
        return (
            "this Ray asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints"
        )
    if address == "auto":
        return "no Ray runs on this machine: start one with `ray start --head`, or leave the address out to embed one"
    return "check with `ray status` that the head runs and that the port is open, or leave the address out to embed one"
