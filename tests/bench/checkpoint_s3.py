"""Uploads to and reads from an S3 server on this machine: ours, boto3's own transfers, and the server's raw rate.

    .venv/bin/python tests/bench/checkpoint_s3.py [--quick] [-o json] [--dir DIR] [--rounds N] [--mib N]

The server is the one of the tests (versitygw, files below DIR, by default in memory), in a process of its own, and
takes most of the processor: it digests every byte with MD5. Everybody sends the same bytes from the same memory in
parts of 8 MiB, and reads them into the same memory in ranges of 8 MiB; connections are kept. An upload is timed from
the order to the answer that the object is there.

- behemoth: what a save does with one shard: CRC-32C of each part, parts sent by threads, the CRC of the whole combined,
  completion only if absent. Reads are what a restore does, without the chunks' CRCs, which are no part of the store.
- 2 processes: the same, half of the parts by each, with half of the threads. What a node would have by several store
  processes; its processor time is not counted.
- boto3: `upload_fileobj` and `download_fileobj` as they come (10 threads, CRC-32, SHA-256 of each part over HTTP).
- boto3 tuned: with the same threads, and neither digest. Nothing guards the bytes then.
- boto3's CRT: the AWS Common Runtime's client, as boto3 has it for HTTPS, made here for HTTP.
- raw: presigned PUTs of the same parts, each an object, and GETs of ranges, by as many connections; no SDK, no digest.

`processor` is the processor time of this process, the client, for one GB.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import numpy as np
from bench_table import Row, alone, alternate, arguments, beside, show
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from s3transfer.crt import (
    BotocoreCRTCredentialsWrapper,
    BotocoreCRTRequestSerializer,
    CRTTransferManager,
    create_s3_crt_client,
)

sys.path.append(str(Path(__file__).parents[1]))  # the server is the tests' own

from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import combine, crc32c
from behemoth.ports import PartReceipt
from behemoth.storage.s3 import S3Store
from behemoth.storage.s3_place import S3Place
from servers.s3_server import BUCKET, REGION, S3Server, s3_server

PART_BYTES = 8 << 20
THREADS = 4
KEY = "shard"
_UNGUARDED = Config(
    s3={"payload_signing_enabled": False},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    max_pool_connections=16,
)
_LIKE_OURS = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)

Work = Callable[[], None]
PROCESSES = 2
IN_PROCESSES = f"{PROCESSES} processes"


class Memory(io.RawIOBase):
    """A file that is a given piece of memory, as boto3 wants one."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._view.nbytes}[whence] + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._view.nbytes if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data

    def readinto(self, into: Any, /) -> int:
        taken = self._view[self._at : self._at + len(into)]
        into[: taken.nbytes] = taken
        self._at += taken.nbytes
        return taken.nbytes

    def write(self, data: Any, /) -> int:
        self._view[self._at : self._at + len(data)] = data
        self._at += len(data)
        return len(data)


class Bench:
    """One server, one object's bytes, and memory to read them into."""

    def __init__(self, server: S3Server, store: S3Store, num_bytes: int) -> None:
        self._server = server
        self._store = store
        self._memory = [SharedMemory(create=True, size=num_bytes) for _ in range(2)]
        self._data, self._into = (
            np.frombuffer(_bytes_of(one), dtype=np.uint8, count=num_bytes) for one in self._memory
        )
        self._data[:] = np.random.default_rng(1).integers(0, 256, num_bytes, dtype=np.uint8)
        self._processes = [
            ProcessPoolExecutor(1, get_context("spawn"), _begin_process, tuple(one.name for one in self._memory))
            for _ in range(PROCESSES)
        ]
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="bench")
        self._plain = server.client()
        self._tuned = self._client(_UNGUARDED)
        self._crt = _crt_transfers(server)
        self._connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(THREADS)]
        self._views = [self._data[at : at + PART_BYTES].data for at in range(0, num_bytes, PART_BYTES)]
        self._puts = [self._presigned("put_object", Key=f"raw/{number}") for number in range(len(self._views))]
        self._get = self._presigned("get_object", Key=KEY)

    def uploads(self) -> dict[str, Work]:
        return {
            "behemoth": self._upload,
            IN_PROCESSES: self._upload_in_processes,
            "boto3": lambda: self._plain.upload_fileobj(self._file(self._data), BUCKET, KEY),
            "boto3 tuned": lambda: self._tuned.upload_fileobj(self._file(self._data), BUCKET, KEY, Config=_LIKE_OURS),
            "boto3's CRT": lambda: self._crt.upload(self._file(self._data), BUCKET, KEY).result(),
            "raw": lambda: self._each_connection(self._send_raw),
        }

    def reads(self) -> dict[str, Work]:
        return {
            "behemoth": lambda: self._store.read_into(KEY, offset_bytes=0, into=self._into.data),
            IN_PROCESSES: lambda: self._in_processes(_read_in_process),
            "boto3": lambda: self._plain.download_fileobj(BUCKET, KEY, self._file(self._into)),
            "boto3 tuned": lambda: self._tuned.download_fileobj(BUCKET, KEY, self._file(self._into), Config=_LIKE_OURS),
            "boto3's CRT": lambda: self._crt.download(BUCKET, KEY, self._file(self._into)).result(),
            "raw": lambda: self._each_connection(self._read_raw),
        }

    def timed(self, work: Work, *, is_upload: bool) -> dict[str, float]:
        """One round of a contender, checked afterwards; what it made goes, off the clock."""
        self._into[:] = 0
        began_cpu_s, began_s = time.process_time(), time.perf_counter()
        work()
        took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        if is_upload:
            for found in self._plain.list_objects_v2(Bucket=BUCKET)["Contents"]:
                self._plain.delete_object(Bucket=BUCKET, Key=found["Key"])
        elif not np.array_equal(self._into, self._data):
            raise RuntimeError("read: expected the bytes that were written, got others")
        kind = "upload" if is_upload else "read"
        return {
            f"{kind} rate": self._data.nbytes / took_s / 1e9,
            f"{kind} processor": took_cpu_s / (self._data.nbytes / 1e9),
        }

    def close(self) -> None:
        for process in self._processes:
            process.shutdown()
        self._crt.shutdown()
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()
        del self._data, self._into, self._views
        for memory in self._memory:
            memory.unlink()

    def _upload_in_processes(self) -> None:
        upload_id = self._store.begin_upload(KEY)
        found = self._in_processes(partial(_send_in_process, upload_id))
        self._complete(upload_id, sorted((one for some in found for one in some), key=lambda one: one.number))

    def _in_processes(self, work: Callable[[list[int]], Any]) -> list[Any]:
        """Every part, by all processes in turn."""
        parts = range(len(self._views))
        begun = [one.submit(work, list(parts[at::PROCESSES])) for at, one in enumerate(self._processes)]
        return [one.result() for one in begun]

    def _upload(self) -> None:
        upload_id = self._store.begin_upload(KEY)

        def send(number: int) -> Any:
            view = self._views[number]
            return self._store.upload_part(KEY, upload_id, number=number + 1, buffers=[view], crc=crc32c(view))

        self._complete(upload_id, list(self._pool.map(send, range(len(self._views)))))

    def _complete(self, upload_id: UploadId, receipts: list[PartReceipt]) -> None:
        crc = 0
        for receipt in receipts:
            crc = combine(crc, receipt.crc, receipt.size_bytes)
        self._store.complete_upload(KEY, upload_id, parts=receipts, crc=crc)

    def _each_connection(self, work: Callable[[http.client.HTTPConnection, int], None]) -> None:
        """Every part, by all connections in turn."""

        def share(first: int) -> None:
            for number in range(first, len(self._views), THREADS):
                work(self._connections[first], number)

        list(self._pool.map(share, range(THREADS)))

    def _send_raw(self, connection: http.client.HTTPConnection, number: int) -> None:
        connection.request("PUT", self._puts[number], body=self._views[number])
        answer = connection.getresponse()
        answer.read()
        _require(answer.status == 200, answer.status)

    def _read_raw(self, connection: http.client.HTTPConnection, number: int) -> None:
        begin = number * PART_BYTES
        view = self._into[begin : begin + PART_BYTES].data
        connection.request("GET", self._get, headers={"Range": f"bytes={begin}-{begin + view.nbytes - 1}"})
        answer = connection.getresponse()
        _require(answer.status == 206, answer.status)
        at = 0
        while at < view.nbytes:
            at += answer.readinto(view[at:])
        answer.read()

    def _file(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> Memory:
        return Memory(data.data)

    def _client(self, config: Config) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._server.endpoint,
            aws_access_key_id=self._server.access_key,
            aws_secret_access_key=self._server.secret_key,
            region_name=REGION,
            config=config,
        )

    def _presigned(self, what: str, **arguments: str) -> str:
        signing = self._client(Config(signature_version="s3v4"))
        url = urlsplit(signing.generate_presigned_url(what, Params={"Bucket": BUCKET, **arguments}, ExpiresIn=3600))
        return f"{url.path}?{url.query}"


def _bytes_of(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


class _OfProcess:
    """What a process of its own has."""

    memory: tuple[SharedMemory, ...]
    store: S3Store
    pool: ThreadPoolExecutor


def _begin_process(*names: str) -> None:
    _OfProcess.memory = tuple(SharedMemory(name) for name in names)
    threads = THREADS // PROCESSES
    _OfProcess.store = S3Store(S3Place(bucket=BUCKET, prefix=""), threads=threads)
    _OfProcess.pool = ThreadPoolExecutor(threads)


def _send_in_process(upload_id: UploadId, parts: list[int]) -> list[PartReceipt]:
    def send(number: int) -> PartReceipt:
        view = _bytes_of(_OfProcess.memory[0])[number * PART_BYTES : (number + 1) * PART_BYTES]
        return _OfProcess.store.upload_part(KEY, upload_id, number=number + 1, buffers=[view], crc=crc32c(view))

    return list(_OfProcess.pool.map(send, parts))


def _read_in_process(parts: list[int]) -> None:
    def read(number: int) -> None:
        begin = number * PART_BYTES
        into = _bytes_of(_OfProcess.memory[1])[begin : begin + PART_BYTES]
        _OfProcess.store.read_into(KEY, offset_bytes=begin, into=into)

    list(_OfProcess.pool.map(read, parts))


def _crt_transfers(server: S3Server) -> CRTTransferManager:
    session = botocore.session.Session()
    session.set_credentials(server.access_key, server.secret_key)
    wrapper = BotocoreCRTCredentialsWrapper(session.get_credentials())
    client = create_s3_crt_client(REGION, wrapper.to_crt_credentials_provider(), part_size=PART_BYTES, use_ssl=False)
    serializer = BotocoreCRTRequestSerializer(session, {"region_name": REGION, "endpoint_url": server.endpoint})
    return CRTTransferManager(client, serializer)


def _require(is_fine: bool, status: int) -> None:
    if not is_fine:
        raise RuntimeError(f"raw request: expected it to succeed, got status {status}")


def _rows(kind: str, samples: dict[str, dict[str, list[float]]]) -> Iterator[Row]:
    rate, processor = f"{kind} rate", f"{kind} processor"
    for peer in [name for name in samples if name != "behemoth"]:
        yield beside(rate, "GB/s", samples["behemoth"][rate], peer, samples[peer][rate])
    yield alone(processor, "s/GB", samples["behemoth"][processor])
    for peer in [name for name in samples if name not in ("behemoth", IN_PROCESSES)]:
        yield beside(processor, "s/GB", samples["behemoth"][processor], peer, samples[peer][processor])


def measure(bench: Bench, *, num_rounds: int) -> list[Row]:
    rows: list[Row] = []
    for is_upload, works in ((True, bench.uploads()), (False, bench.reads())):
        if not is_upload:
            bench.uploads()["behemoth"]()  # what is read
        rounds = {name: partial(bench.timed, work, is_upload=is_upload) for name, work in works.items()}
        rows += _rows("upload" if is_upload else "read", alternate(rounds, num_rounds=num_rounds))
    return rows


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the server keeps its files")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--mib", type=int, default=None, help="size of the object")


def main() -> None:
    options = arguments(__doc__ or "", extend=_extend)
    num_bytes = (options.mib or (64 if options.quick else 256)) << 20
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        server = stack.enter_context(s3_server(folder))
        os.environ.update(server.environment)
        store = S3Store(S3Place(bucket=BUCKET, prefix=""), threads=THREADS)
        stack.callback(store.close)
        bench = Bench(server, store, num_bytes)
        stack.callback(bench.close)
        rows = measure(bench, num_rounds=options.rounds or (3 if options.quick else 15))
    show(
        "checkpoint_s3",
        rows,
        options,
        notes=[f"{num_bytes >> 20} MiB, parts of {PART_BYTES >> 20} MiB, {THREADS} threads"],
    )


if __name__ == "__main__":
    main()
