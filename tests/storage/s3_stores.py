"""Stores on the test server, for tests of the adapter."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from behemoth.storage.s3 import S3Store
from behemoth.storage.s3_place import S3Place
from servers.s3_server import BUCKET, S3Server


@contextmanager
def opened(place: S3Place, **options: Any) -> Iterator[S3Store]:
    """Closed afterwards."""
    store = S3Store(place, **options)
    try:
        yield store
    finally:
        store.close()


def let_in(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """This process has the server's credentials, by the usual chain, and nobody else's."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


def new_place(*, endpoint: str | None = None) -> S3Place:
    """A prefix that nobody has; reached where the environment says, or at what stands before it."""
    return S3Place(bucket=BUCKET, prefix=f"runs/é x/{secrets.token_hex(6)}", endpoint=endpoint)


class OpenedAgain:
    """For a conformance suite, which opens its store a second time: the stores of a test, at one place."""

    def opened_at(self, place: S3Place) -> Iterator[S3Store]:
        """The first; all are closed afterwards."""
        self._place = place
        self._opened = [S3Store(place)]
        yield self._opened[0]
        for store in self._opened:
            store.close()

    def reopened(self, store: Any) -> Any:
        assert store in self._opened
        self._opened.append(S3Store(self._place))
        return self._opened[-1]
