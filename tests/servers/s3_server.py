"""Starts a real S3 server on this machine for tests and benchmarks, with credentials of its own, and ends it by pid.

It keeps objects as files below a given folder, and what S3 says of them in another: not every file system of a test
machine takes extended attributes. As a program it starts one for a command, a shell say, which finds it in its
environment. The neighbour is `versitygw_binary`.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.versitygw_binary import built

REGION = "us-east-1"
BUCKET = "behemoth-tests"
"""Made when the server starts."""
_HEALTH = "/health"
_START_LIMIT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """Where a server listens and what it lets in."""

    port: int
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be let in, as an operator would set it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """boto3's own, as it comes."""
        import boto3

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server over an empty folder. Another process may take the port between our choice and the server's: then it
    ends at once, and is started again."""
    for name in ("objects", "metadata"):
        (folder / name).mkdir()
    for _ in range(5):
        server = S3Server(port=_free_port(), access_key=secrets.token_hex(8), secret_key=secrets.token_hex(16))
        process = _start(server, folder)
        try:
            if _is_ready(server, process):
                server.client().create_bucket(Bucket=BUCKET)
                yield server
                return
        finally:
            process.terminate()
            process.wait(30)
    raise RuntimeError(f"S3 server: expected it to start, got {(folder / 'log').read_text()[-2000:]}")


def _start(server: S3Server, folder: Path) -> subprocess.Popen[bytes]:
    listens = ["--port", f"127.0.0.1:{server.port}", "--health", _HEALTH, "--region", REGION, "--keep-alive", "--quiet"]
    keeps = ["posix", "--sidecar", str(folder / "metadata"), str(folder / "objects")]
    environment = {**os.environ, "ROOT_ACCESS_KEY": server.access_key, "ROOT_SECRET_KEY": server.secret_key}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([str(built()), *listens, *keeps], env=environment, stdout=log, stderr=log)


def _is_ready(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """False when it has ended."""
    ends_s = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < ends_s:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        try:
            connection.request("GET", _HEALTH)
            if connection.getresponse().status == 200:
                return True
        except OSError:
            time.sleep(0.02)
        finally:
            connection.close()
    return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="behemoth-s3-") as root, s3_server(Path(root)) as started:
        environment = {**os.environ, **started.environment}
        environment.pop("PYTHONPATH", None)  # it was meant for this program
        ended = subprocess.run(sys.argv[1:] or ["sh"], env=environment, check=False)
    sys.exit(ended.returncode)
