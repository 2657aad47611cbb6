"""Stands before a server and breaks requests at will: answers in its place, swallows answers, cuts bodies, dawdles.

It sees requests as bytes of HTTP/1.1 over TCP, so that whoever is tested meets what a network and a busy server really
do. Each fault strikes the first request that it matches, once, and in the order given; what matches none is passed on.
A request may also be held, as a whole, before the server has it or before its answer goes back, until the test lets
it go: meanwhile whoever asks may be killed or stopped. One connection carries one request. Must not repair anything.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum

from servers.http_bytes import CHUNK_BYTES, field_of, receive_body, receive_head, refusal, without, xml_answer

_LIMIT_S = 30
_CRAWL_BYTES = 8 << 10
_CRAWL_S = 0.02
DAWDLE_S = 0.4
HELD_LIMIT_S = 170.0
"""How long a test waits for a request to be held, and a held one for the test."""


class How(Enum):
    """What a fault does to a request."""

    STORM = "answers 503 SlowDown in the server's place; the server never sees it"
    LOSE = "lets the server act, and closes the connection instead of passing the answer on"
    ERR = "lets the server act, and answers 500 InternalError"
    CUT_REQUEST = "closes the connection in the middle of the request's body"
    CUT_ANSWER = "closes the connection in the middle of the answer's body"
    REFUSE_EARLY = "answers 403 AccessDenied, which is lost with the rest of a body that is still on its way"
    DAMAGE = "passes the request's body on with one bit flipped"
    CRAWL = "passes bodies on at 400 KB/s, without a pause that would be a timeout by itself"
    DAWDLE = "lets the server act, and keeps its answer for `DAWDLE_S`, some hundred times as long as it took"
    HOLD = "keeps the request from the server until the test lets it go"
    HOLD_ANSWER = "lets the server act, and keeps its answer until the test lets it go"
    CONFLICT = "answers 409 ConditionalRequestConflict in the server's place"
    CLAIM = "answers in the server's place that an upload is complete"
    EXPIRE = "answers 400 ExpiredToken in the server's place"
    UNKNOWN = "answers 501 NotImplemented in the server's place, as to a header that it does not know"


@dataclass(slots=True)
class Fault:
    """`method` and `part`, which is any part of the target, say which requests; `times` how many of them."""

    how: How
    method: str
    part: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class Held:
    """A request that is kept, by its method and target. `client_port` is the asker's end of its connection, on this
    machine."""

    line: str
    client_port: int
    _going: threading.Event = field(default_factory=threading.Event)
    _losing: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)

    def let_go(self) -> None:
        """On its way, whatever has become of who sent it."""
        self._going.set()

    def lose(self) -> None:
        """It never arrives, nor does its answer."""
        self._losing.set()
        self._going.set()

    def arrive(self) -> None:
        """Let go, and wait until the server has taken or refused it."""
        self.let_go()
        assert self.is_over.wait(HELD_LIMIT_S)

    def wait(self) -> None:
        """Raises ConnectionError for one that is lost."""
        self._going.wait(HELD_LIMIT_S)
        if self._losing.is_set():
            raise ConnectionError(f"{self.line}: lost on purpose")


@dataclass(slots=True)
class FaultProxy:
    """Listens on `port`. `struck` tells what each fault has met, `num_requests` counts all, `ending` ends crawls."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    struck: list[How] = field(default_factory=list)
    num_requests: int = 0
    ending: threading.Event = field(default_factory=threading.Event)
    _held: list[Held] = field(default_factory=list)
    _holding: queue.SimpleQueue[Held] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def plan(self, *faults: Fault) -> None:
        """From now on."""
        with self._lock:
            self.faults = [replace(fault) for fault in faults]  # they are counted down
            self.struck.clear()
            self.num_requests = 0

    def held(self) -> Held:
        """The next request that is kept, which is waited for. Raises queue.Empty."""
        return self._holding.get(timeout=HELD_LIMIT_S)

    def held_now(self) -> list[Held]:
        """The next one, if there is one."""
        try:
            return [self._holding.get_nowait()]
        except queue.Empty:
            return []

    def hold(self, head: bytes, client: socket.socket) -> Held:
        """Until the test lets the request go, or ends."""
        one = Held(head.split(b"\r\n", 1)[0].decode(), int(client.getpeername()[1]))
        with self._lock:
            self._held.append(one)
        self._holding.put(one)
        if not self.ending.is_set():
            one.wait()
        return one

    def end(self) -> None:
        """Whatever is kept or crawls goes on."""
        self.ending.set()
        with self._lock:
            for one in self._held:
                one.let_go()

    def next_fault(self, request_line: str) -> How | None:
        method, target, _ = request_line.split(" ", 2)
        with self._lock:
            self.num_requests += 1
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in target:
                    fault.times -= 1
                    self.struck.append(fault.how)
                    return fault.how
        return None


@contextmanager
def fault_proxy(server_port: int) -> Iterator[FaultProxy]:
    """A proxy before the server at `server_port` of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = FaultProxy(port=listening.getsockname()[1])
        accepting = threading.Thread(target=_accept, args=(listening, proxy, server_port), name="fault-proxy")
        accepting.start()
        try:
            yield proxy
        finally:
            proxy.end()
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join(_LIMIT_S)


def _accept(listening: socket.socket, proxy: FaultProxy, server_port: int) -> None:
    serving: list[threading.Thread] = []
    with suppress(OSError):
        while True:
            client, _ = listening.accept()
            client.settimeout(_LIMIT_S)
            one = threading.Thread(target=_serve, args=(client, proxy, server_port), name="fault-proxy-request")
            one.start()
            serving.append(one)
    for thread in serving:
        thread.join(_LIMIT_S)


def _serve(client: socket.socket, proxy: FaultProxy, server_port: int) -> None:
    with client, suppress(OSError):
        head, body = receive_head(client)
        if not head:
            return
        how = proxy.next_fault(head.split(b"\r\n", 1)[0].decode())
        num_bytes = int(field_of(head, b"content-length") or 0)
        if how in _ANSWERS_BEFORE:
            client.sendall(_ANSWERS_BEFORE[how])
        elif how is How.REFUSE_EARLY:
            _refuse_early(client, head, body, num_bytes)
        elif how is How.HOLD:
            head, body = _whole(client, head, body, num_bytes)
            held = proxy.hold(head, client)
            try:
                _pass_on(client, head, body, how, proxy, server_port)
            finally:  # a server that refuses it may close the connection before it has read all
                held.is_over.set()
        else:
            _pass_on(client, head, body, how, proxy, server_port)


def _pass_on(
    client: socket.socket, head: bytes, body: bytes, how: How | None, proxy: FaultProxy, server_port: int
) -> None:
    """The request to the server, of whose body this much is here, and its answer to the client."""
    num_bytes = int(field_of(head, b"content-length") or 0)
    with socket.create_connection(("127.0.0.1", server_port), timeout=_LIMIT_S) as server:
        server.sendall(_for_one_request(head))
        answer: tuple[bytes, bytes] | None = None
        if field_of(head, b"expect") is not None:  # the server may refuse before the body is sent
            answer = receive_head(server)
            if answer[0].startswith(b"HTTP/1.1 100"):
                client.sendall(answer[0])
                answer = None
        if answer is None:
            if how is How.CUT_REQUEST:
                server.sendall(receive_body(client, body, num_bytes // 2))
                return
            if how is How.CRAWL:
                body = _crawled(client, body, num_bytes, proxy.ending)
            received = receive_body(client, body, num_bytes)
            server.sendall(_damaged(received) if how is How.DAMAGE else received)
        answer = answer or receive_head(server)
        if how is How.HOLD_ANSWER:
            proxy.hold(head, client)
        if how is How.DAWDLE:
            proxy.ending.wait(DAWDLE_S)
        _pass_answer(server, client, answer, how, is_head=head.startswith(b"HEAD"), ending=proxy.ending)


def _whole(client: socket.socket, head: bytes, body: bytes, num_bytes: int) -> tuple[bytes, bytes]:
    """A request of which nothing is left to come: neither of its body nor of the leave to send that."""
    if field_of(head, b"expect") is not None:
        client.sendall(_CONTINUE)
    return without(head, b"expect"), receive_body(client, body, num_bytes)


def _refuse_early(client: socket.socket, head: bytes, body: bytes, num_bytes: int) -> None:
    """TCP resets a connection that is closed with bytes unread, and drops an answer that was not read yet."""
    if field_of(head, b"expect") is not None:
        client.sendall(_CONTINUE)
    if num_bytes > len(receive_body(client, body, min(num_bytes, CHUNK_BYTES))):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        client.sendall(_DENIED)


def _damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _pass_answer(
    server: socket.socket,
    client: socket.socket,
    answer: tuple[bytes, bytes],
    how: How | None,
    *,
    is_head: bool,
    ending: threading.Event,
) -> None:
    head, body = answer
    num_bytes = 0 if is_head else int(field_of(head, b"content-length") or 0)
    if field_of(head, b"transfer-encoding") is not None:
        while chunk := server.recv(CHUNK_BYTES):
            body += chunk
    else:
        body = receive_body(server, body, num_bytes)
    match how:
        case How.LOSE:
            return
        case How.ERR:
            client.sendall(_ERROR)
        case How.CRAWL:
            client.sendall(head)
            for begin in range(0, len(body), _CRAWL_BYTES):
                client.sendall(body[begin : begin + _CRAWL_BYTES])
                ending.wait(_CRAWL_S)
        case How.CUT_ANSWER:
            client.sendall(head + body[: len(body) // 2])
        case _:
            client.sendall(head + body)


def _crawled(sock: socket.socket, got: bytes, num_bytes: int, ending: threading.Event) -> bytes:
    """What is received so until all is there, or the proxy ends. Raises ConnectionError when the sender gives up."""
    data = bytearray(got)
    while len(data) < num_bytes and not ending.wait(_CRAWL_S):
        chunk = sock.recv(min(_CRAWL_BYTES, num_bytes - len(data)))
        if not chunk:
            raise ConnectionError(f"expected {num_bytes} bytes, got {len(data)}")
        data += chunk
    return bytes(data)


def _for_one_request(head: bytes) -> bytes:
    """The server closes the connection afterwards."""
    return without(head, b"connection")[:-2] + b"Connection: close\r\n\r\n"


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ERROR = refusal("500 Internal Server Error", "InternalError")
_DENIED = refusal("403 Forbidden", "AccessDenied")
_ANSWERS_BEFORE: dict[How | None, bytes] = {
    How.STORM: refusal("503 Slow Down", "SlowDown"),
    How.CONFLICT: refusal("409 Conflict", "ConditionalRequestConflict"),
    How.CLAIM: xml_answer("200 OK", "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"),
    How.EXPIRE: refusal("400 Bad Request", "ExpiredToken"),
    How.UNKNOWN: refusal("501 Not Implemented", "NotImplemented"),
}


def every(how: How, methods: Iterable[str]) -> list[Fault]:
    """One of this kind for the first request of each method."""
    return [Fault(how, method) for method in methods]
