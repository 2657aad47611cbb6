"""The adapter for S3 on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from behemoth.testing.uploads import UploadContract
from servers.s3_server import S3Server
from storage.s3_stores import OpenedAgain, let_in, new_place


class TestS3Store(OpenedAgain, UploadContract):
    @pytest.fixture
    def store(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        let_in(monkeypatch, s3)
        yield from self.opened_at(new_place())
