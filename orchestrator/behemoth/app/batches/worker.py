"""A worker: one program per machine that runs batches on its threads until the executor hangs up.

It decides nothing and remembers nothing. Neighbours: `workers`, the other end, and `wiring.batch_worker`, its process.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from behemoth.app.batches.jobs import Work, open_work
from behemoth.app.batches.messages import (
    Failed,
    Finished,
    FromWorker,
    Hello,
    Open,
    RunBatch,
    Stop,
    Stopped,
    ToWorker,
    to_worker_decoder,
)
from behemoth.base.errors import BehemothError, Internal, Invalid
from behemoth.wire.frames import FrameReader, decode_body, encode_frame

ADDRESS_ENV, TOKEN_ENV = "BEHEMOTH_BATCH_ADDRESS", "BEHEMOTH_BATCH_TOKEN"
NODE_ENV, INCARNATION_ENV = "BEHEMOTH_BATCH_NODE", "BEHEMOTH_BATCH_INCARNATION"
CONNECT_LIMIT_S = 20.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Where the executor listens, and what this worker proves itself with."""

    host: str
    port: int
    hello: Hello


def take_settings(environment: MutableMapping[str, str]) -> WorkerSettings:
    """Read the settings from the environment, and remove the token from it. Raises Invalid for missing ones."""
    try:
        host, _, port = environment[ADDRESS_ENV].rpartition(":")
        hello = Hello(
            node=environment[NODE_ENV],
            incarnation=int(environment[INCARNATION_ENV]),
            token=environment.pop(TOKEN_ENV),
        )
        return WorkerSettings(host=host, port=int(port), hello=hello)
    except (KeyError, ValueError) as error:
        raise Invalid(
            f"worker: expected its settings in the environment, got {error}", code="worker-settings"
        ) from error


def serve(settings: WorkerSettings, *, open_work: Callable[[bytes], Work] = open_work) -> None:
    """Run batches until the executor closes the connection. Blocks. Raises OSError when it cannot connect."""
    with socket.create_connection((settings.host, settings.port), timeout=CONNECT_LIMIT_S) as connection:
        connection.settimeout(None)  # an idle worker waits for as long as its executor lives
        worker = _Worker(connection, open_work)
        worker.send(settings.hello)
        worker.serve()


class _Worker:
    """Answers come from the pool's threads, one at a time on the wire."""

    def __init__(self, connection: socket.socket, open_work: Callable[[bytes], Work]) -> None:
        self._connection = connection
        self._open_work = open_work
        self._send_lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._work: Work | None = None
        self._turn = 0

    def send(self, message: FromWorker) -> None:
        with self._send_lock:
            self._connection.sendall(encode_frame(message))

    def serve(self) -> None:
        reader = FrameReader()
        try:
            while data := self._connection.recv(_READ_BYTES):
                for body in reader.feed(data):
                    self._handle(decode_body(to_worker_decoder, body))
        finally:
            self._end_job()

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Open(turn=turn, job=job, threads=threads):
                self._end_job()
                self._turn = turn
                try:
                    self._work = self._open_work(job)
                except Exception as error:  # noqa: BLE001 (the edge of this process, as in `_run`)
                    self.send(Failed.of(_ours(error, "opening the job"), turn=turn))
                    return
                self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="batch")
            case RunBatch(number=number, data=data):
                if self._pool is not None:
                    self._pool.submit(self._run, number, data)
            case Stop(turn=turn):
                self._end_job()
                self.send(Stopped(turn=turn))

    def _run(self, number: int, data: bytes) -> None:
        assert self._work is not None
        try:
            answer: FromWorker = Finished(turn=self._turn, number=number, data=self._work.run(data))
        except Exception as error:  # noqa: BLE001 (the edge of this process: an error that is not sent is lost)
            answer = Failed.of(_ours(error, f"batch {number}"), turn=self._turn)
        self.send(answer)

    def _end_job(self) -> None:
        """Give up what is under way and close the job. Blocks until large batches have given up."""
        if self._work is not None:
            self._work.stop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._work is not None:
            self._work.close()
        self._pool = self._work = None


def _ours(error: Exception, doing: str) -> BehemothError:
    return error if isinstance(error, BehemothError) else Internal(f"{doing}: {type(error).__name__}: {error}")
