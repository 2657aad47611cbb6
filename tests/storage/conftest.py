"""Of tests of the adapter for S3: a proxy before the real server, and little patience between tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from behemoth.base import retry
from servers.fault_proxy import FaultProxy, fault_proxy
from servers.s3_server import S3Server
from storage.s3_stores import let_in


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    let_in(monkeypatch, s3)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    with fault_proxy(s3.port) as standing:
        yield standing
