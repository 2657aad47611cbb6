"""One node asks another for what lies in its memory, over real sockets; liars and strangers on either side."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.peers.staged import KEY, LAYOUT, StagedRank, identity, staged_rank
from behemoth.agent.memories import Memories
from behemoth.agent.peers import client as client_module
from behemoth.agent.peers import server as server_module
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import SILENT, PeerAddress, PeerIdentity, admit
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.server import Handler, PeerServer, Reply
from behemoth.agent.peers.sockets import LATE, PeerSocket
from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, NotFound, Timeout, Unavailable
from behemoth.base.ids import NodeId, Rank, WriteId
from behemoth.checkpoint.exchange import OUT_OF_TIME
from behemoth.wire.frames import encode_frame
from behemoth.wire.peers import (
    PEER_BUSY,
    AskBytes,
    AskSnapshot,
    BytesFound,
    SnapshotFound,
)

ASKER = identity("n1")
LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""
SHORT_S = 0.3
"""In which nobody answers who says nothing."""


@contextlib.contextmanager
def serving(handlers: Mapping[type, Handler], me: PeerIdentity | None = None) -> Iterator[PeerAddress]:
    listener = listen_for_peers("127.0.0.1")
    server = PeerServer(listener, me or identity("n0"), handlers)
    server.start()
    try:
        yield PeerAddress(node=NodeId("n0"), host="127.0.0.1", port=listener.getsockname()[1])
    finally:
        server.close()


@contextlib.contextmanager
def asking(me: PeerIdentity = ASKER, *, limit_s: float = LIMIT_S) -> Iterator[PeerClient]:
    client = PeerClient(me, answer_limit_s=limit_s)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def staged() -> Iterator[tuple[StagedRank, Memories]]:
    memories = Memories(num_ranks=2)
    rank = staged_rank(memories)
    try:
        yield rank, memories
    finally:
        rank.close()


def ask_snapshot(write_id: str = "a1-1", *, rank: int = 0) -> AskSnapshot:
    return AskSnapshot(rank=Rank(rank), write_id=WriteId(write_id), layout_digest=LAYOUT.digest)


def ask_bytes(sequence: int, offset: int, length: int, write_id: str = "a1-1") -> AskBytes:
    return AskBytes(
        rank=Rank(0), write_id=WriteId(write_id), sequence=sequence, offset_bytes=offset, length_bytes=length
    )


def fetch(client: PeerClient, peer: PeerAddress, rank: StagedRank) -> bytes:
    """The whole data area of the rank's snapshot, in three ranges, and its CRCs compared."""
    table = memoryview(bytearray(4 * len(rank.plan.spans)))
    found = client.ask(peer, ask_snapshot(), SnapshotFound, into=table)
    assert bytes(table) == rank.arena.crcs(0).tobytes()
    into = memoryview(bytearray(found.data_bytes))
    third = found.data_bytes // 3
    for start, stop in ((0, third), (third, 2 * third), (2 * third, found.data_bytes)):
        client.ask(peer, ask_bytes(found.sequence, start, stop - start), BytesFound, into=into[start:stop])
    return bytes(into)


def test_a_snapshot_comes_straight_out_of_another_nodes_memory() -> None:
    with staged() as (rank, memories), serving(memories.handlers()) as peer, asking() as client:
        content = rank.save(0, "a1-1", 7)
        assert fetch(client, peer, rank) == content


def test_what_is_not_there_is_told_by_the_class_of_the_error() -> None:
    with staged() as (rank, memories), serving(memories.handlers()) as peer, asking() as client:
        rank.save(0, "a1-1", 7)
        table = memoryview(bytearray(4 * len(rank.plan.spans)))
        with pytest.raises(NotFound, match=r"node n0: memory of rank 0: expected a snapshot of write a9-9"):
            client.ask(peer, ask_snapshot("a9-9"), SnapshotFound, into=table)
        with pytest.raises(NotFound, match="memory of rank 1"):
            client.ask(peer, ask_snapshot(rank=1), SnapshotFound, into=table)
        wrong = AskSnapshot(rank=Rank(0), write_id=WriteId("a1-1"), layout_digest="f" * 64)
        with pytest.raises(Invalid, match="expected layout ffff"):
            client.ask(peer, wrong, SnapshotFound, into=table)
        with pytest.raises(Invalid, match="expected a range within"):
            client.ask(peer, ask_bytes(1, rank.arena.data_bytes - 10, 11), BytesFound, into=memoryview(bytearray(11)))


def test_memory_that_is_not_what_its_write_saved_is_given_to_nobody() -> None:
    with staged() as (rank, memories), serving(memories.handlers()) as peer, asking() as client:
        content = rank.save(0, "a1-1", 7)
        rank.arena.disprove(0)  # as a restore does that had nothing for some arrays
        table = memoryview(bytearray(4 * len(rank.plan.spans)))
        with pytest.raises(NotFound, match="expected it verified, got staged"):
            client.ask(peer, ask_snapshot(), SnapshotFound, into=table)
        assert rank.arena.data(0) == content
        with pytest.raises(NotFound):
            rank.arena.disprove(0)


def test_memory_that_was_filled_anew_is_another_snapshot() -> None:
    with staged() as (rank, memories), serving(memories.handlers()) as peer, asking() as client:
        rank.save(0, "a1-1", 7)
        table = memoryview(bytearray(4 * len(rank.plan.spans)))
        found = client.ask(peer, ask_snapshot(), SnapshotFound, into=table)
        rank.save(0, "a1-1", 7)
        with pytest.raises(NotFound):
            client.ask(peer, ask_bytes(found.sequence, 0, 10), BytesFound, into=memoryview(bytearray(10)))


def test_memory_that_is_filled_anew_while_it_is_sent_is_no_answer() -> None:
    with staged() as (rank, memories), asking() as client:
        rank.save(0, "a1-1", 7)
        handle = memories.handlers()[AskBytes]

        def overtaken(request: AskBytes) -> Reply:
            reply = handle(request)
            rank.arena.begin(0, WriteId("a1-2"), rank.arena.snapshot(0).step, rank.plan.layout_digest)
            return reply

        with serving({AskBytes: overtaken}) as peer, pytest.raises(Conflict, match="replaced while it was sent"):
            client.ask(peer, ask_bytes(1, 0, 4096), BytesFound, into=memoryview(bytearray(4096)))


def test_memory_is_served_while_it_is_replaced_by_other_memory() -> None:
    with staged() as (rank, memories), serving(memories.handlers()) as peer, asking() as client:
        rank.save(0, "a1-1", 7)
        newer = staged_rank(memories)
        content = newer.save(0, "a1-1", 8)
        assert fetch(client, peer, newer) == content
        newer.close()


def test_an_error_of_a_handler_that_nobody_thought_of_is_told_by_its_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(_request: AskSnapshot) -> Reply:
        raise KeyError("what only this node should see")

    caplog.set_level(logging.CRITICAL)
    with serving({AskSnapshot: breaks}) as peer, asking() as client:
        for _ in range(2):  # the connection lives on
            with pytest.raises(BehemothError, match=r"node n0: request AskSnapshot: KeyError$") as caught:
                client.ask(peer, ask_snapshot(), SnapshotFound)
            assert caught.value.code == "peer-request"


def test_a_request_that_a_node_does_not_serve_is_refused() -> None:
    with serving({}) as peer, asking() as client, pytest.raises(Unavailable, match="does not serve it"):
        client.ask(peer, ask_snapshot(), SnapshotFound)


def test_a_node_without_the_key_is_denied_and_the_key_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        serving({}) as peer,
        asking(identity("n1", key="wrong")) as client,
        pytest.raises(Denied, match="got one without its key") as caught,
    ):
        client.ask(peer, ask_snapshot(), SnapshotFound)
    told = f"{caught.value} {caught.value.hint} {caplog.text} {identity('n1')!r}"
    assert KEY not in told
    assert "wrong" not in told


def test_a_node_of_another_run_is_denied() -> None:
    with serving({}) as peer, asking(identity("n1", run_uid="run-2")) as client, pytest.raises(Denied):
        client.ask(peer, ask_snapshot(), SnapshotFound)


def test_another_node_of_the_run_behind_an_old_port_is_not_taken_for_the_one_that_was_there() -> None:
    with (
        serving({}, identity("n7")) as peer,
        asking() as client,
        pytest.raises(Unavailable, match="node n0: another program listens at its port"),
    ):
        client.ask(peer, ask_snapshot(), SnapshotFound)


def test_another_program_behind_an_old_port_is_not_taken_for_a_damaged_answer() -> None:
    def greet(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            sock.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener, asking() as client, ThreadPoolExecutor(1) as pool:
        pool.submit(greet, listener)
        peer = PeerAddress(node=NodeId("n0"), host="127.0.0.1", port=listener.getsockname()[1])
        with pytest.raises(Unavailable, match="node n0: another program listens at its port"):
            client.ask(peer, ask_snapshot(), SnapshotFound)


def test_a_node_that_is_gone_is_unavailable() -> None:
    with serving({}) as peer:
        pass
    with asking() as client, pytest.raises(Unavailable, match="node n0: expected a connection to"):
        client.ask(peer, ask_snapshot(), SnapshotFound)


def test_a_connection_that_the_node_closed_meanwhile_is_opened_again() -> None:
    handlers: Mapping[type, Handler] = {
        AskSnapshot: lambda _: Reply(answer=SnapshotFound(sequence=1, step=2, data_bytes=3))
    }
    listener = listen_for_peers("127.0.0.1")
    peer = PeerAddress(node=NodeId("n0"), host="127.0.0.1", port=listener.getsockname()[1])
    with asking() as client:
        for _ in range(2):  # the second is the successor of a store process that died
            server = PeerServer(listener.dup(), identity("n0"), handlers)
            server.start()
            assert client.ask(peer, ask_snapshot(), SnapshotFound).data_bytes == 3
            server.close()
    listener.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    garbage=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=64).map(lambda body: struct.pack("<I", len(body)) + body),
            st.integers(0, 2**32 - 1).map(lambda length: struct.pack("<I", length)),
        ),
        max_size=4,
    )
)
def test_whatever_a_stranger_sends_the_next_node_is_served(garbage: list[bytes]) -> None:
    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    with (
        serving({AskSnapshot: lambda _: Reply(answer=answer)}) as peer,
        asking() as client,
        socket.create_connection((peer.host, peer.port), timeout=LIMIT_S) as stranger,
    ):
        with contextlib.suppress(OSError):
            stranger.sendall(b"".join(garbage))
        assert client.ask(peer, ask_snapshot(), SnapshotFound) == answer


def test_strangers_that_knock_and_say_nothing_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_STRANGERS", 4)
    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    with serving({AskSnapshot: lambda _: Reply(answer=answer)}) as peer, asking() as client:
        strangers = [socket.create_connection((peer.host, peer.port), timeout=LIMIT_S) for _ in range(20)]
        assert client.ask(peer, ask_snapshot(), SnapshotFound) == answer
        for stranger in strangers[:10]:  # these went for later ones
            while stranger.recv(4096):
                pass
        for stranger in strangers:
            stranger.close()


def test_a_node_that_has_no_thread_left_for_a_connection_serves_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = threading.Thread.start, list[threading.Thread]()

    def start_but_one(thread: threading.Thread) -> None:
        if thread.name == "peer-serve" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    with serving({AskSnapshot: lambda _: Reply(answer=answer)}) as peer, asking() as client:
        monkeypatch.setattr(threading.Thread, "start", start_but_one)
        with pytest.raises(Unavailable):
            client.ask(peer, ask_snapshot(), SnapshotFound)
        assert client.ask(peer, ask_snapshot(), SnapshotFound) == answer
    assert len(refused) == 1


def test_a_server_is_closed_without_a_wait_though_a_forked_child_has_its_sockets_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_JOIN_LIMIT_S", 3600.0)
    server = PeerServer(listen_for_peers("127.0.0.1"), identity("n0"), {})
    server.start()
    with ThreadPoolExecutor(1) as pool, server._woken.dup(), server._wake.dup():
        pool.submit(server.close).result(LIMIT_S)
    assert not server._accepting.is_alive()


def test_more_nodes_than_a_node_has_connections_for_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(serving({AskSnapshot: lambda _: Reply(answer=answer)}))
        nodes = [stack.enter_context(asking()) for _ in range(5)]
        for node in nodes * 3:
            assert node.ask(peer, ask_snapshot(), SnapshotFound) == answer


class EndOfPatience:
    """The time of a client for which every pause is as long as its patience."""

    def __init__(self) -> None:
        self._paused_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._paused_s

    def sleep(self, _seconds: float) -> None:
        self._paused_s += LIMIT_S


def test_a_node_that_answers_on_all_its_connections_says_so_to_the_next_which_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    is_asked, may_answer = threading.Event(), threading.Event()

    def slow(_: object) -> Reply:
        is_asked.set()
        assert may_answer.wait(LIMIT_S)
        return Reply(answer=answer)

    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(serving({AskSnapshot: slow}))
        first, hasty, patient = (stack.enter_context(asking()) for _ in range(3))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        asked = [pool.submit(first.ask, peer, ask_snapshot(), SnapshotFound)]
        assert is_asked.wait(LIMIT_S)
        with monkeypatch.context() as patched:
            patched.setattr(client_module, "time", EndOfPatience())
            with pytest.raises(Unavailable) as caught:
                hasty.ask(peer, ask_snapshot(), SnapshotFound)
        assert caught.value.code == PEER_BUSY
        asked.append(pool.submit(patient.ask, peer, ask_snapshot(), SnapshotFound))
        may_answer.set()
        assert [one.result(LIMIT_S) for one in asked] == [answer, answer]


def test_who_gives_up_asks_a_node_that_is_busy_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 0)  # all of them are being answered
    given_up = iter([False] * 5)
    with serving({}) as peer, asking(limit_s=3600) as client, pytest.raises(Conflict, match="given up") as caught:
        client.ask(peer, ask_snapshot(), SnapshotFound, cancelled=lambda: next(given_up, True))
    assert caught.value.code == "cancelled"


def test_who_gives_up_waits_no_longer_for_a_connection_that_does_not_come_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_LIMIT_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        port = full.getsockname()[1]
        for _ in range(4):  # until the kernel takes no more of them, and drops what comes
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        client, given_up = stack.enter_context(asking()), threading.Event()
        pool = stack.enter_context(ThreadPoolExecutor(1))
        peer = PeerAddress(node=NodeId("n0"), host="127.0.0.1", port=port)
        asked = pool.submit(client.ask, peer, ask_snapshot(), SnapshotFound, cancelled=given_up.is_set)
        with pytest.raises(FutureTimeout):
            asked.result(SHORT_S)
        given_up.set()
        with pytest.raises(Conflict, match="given up"):
            asked.result(LIMIT_S)


def test_a_name_of_several_addresses_is_connected_to_at_the_one_that_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SnapshotFound(sequence=1, step=2, data_bytes=3)
    with serving({AskSnapshot: lambda _: Reply(answer=answer)}) as peer, asking() as client:
        nowhere, here = ("127.0.0.2", peer.port), ("127.0.0.1", peer.port)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in (nowhere, here)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert client.ask(peer, ask_snapshot(), SnapshotFound) == answer


def test_a_node_that_froze_is_not_waited_for_on_each_of_the_connections_that_stand() -> None:
    answer, frozen = SnapshotFound(sequence=1, step=2, data_bytes=3), threading.Event()
    together, let_go = threading.Barrier(3), threading.Event()

    def snapshot(_: object) -> Reply:
        assert let_go.wait(LIMIT_S) if frozen.is_set() else together.wait(LIMIT_S) >= 0
        return Reply(answer=answer)

    with serving({AskSnapshot: snapshot}) as peer, asking() as client, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.ask, peer, ask_snapshot(), SnapshotFound) for _ in range(3)]
        assert [one.result(LIMIT_S) for one in asked] == 3 * [answer]
        assert len(client._idle) == 3
        frozen.set()

        def is_over() -> bool:
            raise Timeout("no time left")

        with pytest.raises(Timeout, match="no time left"):
            client.ask(peer, ask_snapshot(), SnapshotFound, cancelled=is_over)
        assert client._idle == []
        let_go.set()


@contextlib.contextmanager
def lying(lie: Callable[[socket.socket], None]) -> Iterator[PeerAddress]:
    """A node that shakes hands properly, hears one request, and then does what `lie` does."""
    listener = listen_for_peers("127.0.0.1")

    def serve() -> None:
        with contextlib.suppress(OSError, BehemothError):
            sock, _ = listener.accept()
            with sock:
                link = PeerSocket(sock)
                admit(link, identity("n0"), deadline=time.monotonic() + LIMIT_S)
                sock.setblocking(True)
                sock.recv(4096)
                lie(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield PeerAddress(node=NodeId("n0"), host="127.0.0.1", port=listener.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(LIMIT_S)


@settings(max_examples=30, deadline=None)
@given(said=st.binary(min_size=1, max_size=100).filter(lambda said: said[:4] != bytes(4)))
def test_a_node_that_answers_rubbish_is_an_error_of_ours_within_the_limit(said: bytes) -> None:
    with (
        lying(lambda sock: sock.sendall(said)) as peer,
        asking(limit_s=SHORT_S) as client,
        pytest.raises((Corrupt, Unavailable, Timeout)),
    ):
        client.ask(peer, ask_snapshot(), SnapshotFound)


def test_a_length_that_no_answer_has_is_refused_before_it_takes_memory() -> None:
    with (
        lying(lambda sock: sock.sendall(b"\xff\xff\xff\xff")) as peer,
        asking() as client,
        pytest.raises(Corrupt, match="got a length of 4294967295"),
    ):
        client.ask(peer, ask_snapshot(), SnapshotFound)


@pytest.mark.parametrize("claimed", [5, 4097, 2**62])
def test_a_payload_of_another_size_than_the_place_for_it_is_refused(claimed: int) -> None:
    lie = encode_frame(BytesFound(payload_bytes=claimed))
    with (
        lying(lambda sock: sock.sendall(lie)) as peer,
        asking() as client,
        pytest.raises(Corrupt, match=f"expected 4096 bytes behind it, got {claimed}"),
    ):
        client.ask(peer, ask_bytes(1, 0, 4096), BytesFound, into=memoryview(bytearray(4096)))


def test_a_node_that_dies_within_a_payload_is_unavailable() -> None:
    lie = encode_frame(BytesFound(payload_bytes=4096)) + bytes(100)
    with (
        lying(lambda sock: sock.sendall(lie)) as peer,
        asking() as client,
        pytest.raises(Unavailable, match="got its end"),
    ):
        client.ask(peer, ask_bytes(1, 0, 4096), BytesFound, into=memoryview(bytearray(4096)))


def test_a_node_that_says_nothing_costs_no_more_than_the_limit() -> None:
    let_go = threading.Event()

    def say_nothing(_sock: socket.socket) -> None:
        let_go.wait(LIMIT_S)

    with lying(say_nothing) as peer, asking(limit_s=SHORT_S) as client:
        try:
            with pytest.raises(Timeout):
                client.ask(peer, ask_snapshot(), SnapshotFound)
        finally:
            let_go.set()


ANSWER = encode_frame(BytesFound(payload_bytes=4096))
BEGINS = {"a length": ANSWER[:3], "an answer": ANSWER[:-1], "a payload": ANSWER + bytes(9), "all": ANSWER + bytes(4096)}


@contextlib.contextmanager
def stopping_within_an_answer(begin: bytes) -> Iterator[PeerAddress]:
    let_go = threading.Event()

    def begin_only(sock: socket.socket) -> None:
        sock.sendall(begin)
        let_go.wait(LIMIT_S)

    with lying(begin_only) as peer:
        try:
            yield peer
        finally:
            let_go.set()


def asked_of(client: PeerClient, peer: PeerAddress, cancelled: Callable[[], bool] = lambda: False) -> None:
    into = memoryview(bytearray(4096))
    client.ask(peer, ask_bytes(1, 0, 4096), BytesFound, into=into, cancelled=cancelled)


@pytest.mark.parametrize("begin", BEGINS.values(), ids=BEGINS)
def test_a_node_that_stops_within_an_answer_is_not_waited_for_as_long_as_the_whole_may_take(
    monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(client_module, "STALL_S", 0.05)
    monkeypatch.setattr(client_module, "SILENCE_S", 0.05)
    message = r"^node n0: answer: expected the rest of it, got nothing for \d+\.\d s$"
    with (
        stopping_within_an_answer(begin) as peer,
        asking(limit_s=3600) as client,
        pytest.raises(Timeout, match=message) as caught,
    ):
        asked_of(client, peer)
    assert caught.value.code == SILENT


@pytest.mark.parametrize("begin", BEGINS.values(), ids=BEGINS)
def test_who_gives_up_waits_no_longer_for_the_rest_of_an_answer(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(client_module, "STALL_S", 3600.0)
    looks = iter([False] * 3)
    with stopping_within_an_answer(begin) as peer, asking(limit_s=3600) as client:
        with pytest.raises(Conflict, match="node n0: peer connection: given up"):
            asked_of(client, peer, lambda: next(looks, True))
        assert client._idle == []


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_payload_that_comes_byte_by_byte_is_waited_for_no_longer_than_any_and_is_late_but_not_silent(
    monkeypatch: pytest.MonkeyPatch, is_given_up: bool
) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", LIMIT_S)
    is_over = threading.Event()

    def trickle(sock: socket.socket) -> None:
        sock.sendall(ANSWER)
        with contextlib.suppress(OSError):
            for _ in range(4000):
                sock.sendall(b"x")
                if is_over.wait(0.005):
                    return

    ends_s = time.monotonic() + 0.3
    limit_s, error, code = (3600.0, Conflict, "cancelled") if is_given_up else (0.3, Timeout, LATE)
    with lying(trickle) as peer, asking(limit_s=limit_s) as client:
        try:
            with pytest.raises(error) as caught:
                asked_of(client, peer, lambda: is_given_up and time.monotonic() > ends_s)
        finally:
            is_over.set()
    assert caught.value.code == code


@pytest.mark.parametrize(("silence_s", "code"), [(0.0, SILENT), (3600.0, OUT_OF_TIME)])
def test_of_who_stopped_long_before_the_askers_time_was_over_it_is_told(
    monkeypatch: pytest.MonkeyPatch, silence_s: float, code: str
) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", silence_s)

    def no_time() -> bool:
        raise Timeout("no time left", code=OUT_OF_TIME)

    with stopping_within_an_answer(ANSWER) as peer, asking(limit_s=3600) as client, pytest.raises(Timeout) as caught:
        asked_of(client, peer, no_time)
    assert caught.value.code == code


def test_an_answer_to_another_question_is_corrupt() -> None:
    with (
        serving({AskSnapshot: lambda _: Reply(answer=BytesFound())}) as peer,
        asking() as client,
        pytest.raises(Corrupt, match="expected SnapshotFound, got BytesFound"),
    ):
        client.ask(peer, ask_snapshot(), SnapshotFound)
