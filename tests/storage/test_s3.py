"""The adapter for S3 on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from behemoth.storage.s3 import S3Store
from behemoth.testing.uploads import UploadContract
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place


class TestS3Store(UploadContract):
    @pytest.fixture
    def store(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        let_in(monkeypatch, s3)
        self._place = new_place()
        self._opened = [S3Store(self._place)]
        yield self._opened[0]
        for store in self._opened:
            store.close()

    def reopened(self, store: Any) -> Any:
        assert store in self._opened
        self._opened.append(S3Store(self._place))
        return self._opened[-1]
