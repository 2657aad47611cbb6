"""From the URL in a run's spec, or a path on the command line, to an ObjectStore.

The only place that knows which adapters exist. Must not touch the store: opening is free, the first use may fail.
The neighbour is `local`.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from behemoth.base.errors import Invalid
from behemoth.storage.local import LocalStore

_SUPPORTED = "a path or file:///path"


def open_store(url: str) -> LocalStore:
    """A store for `file:///path` or a plain path (relative to the working directory, `~` is the home). The caller
    closes it. Raises Invalid for anything else; `s3://` is not supported yet."""
    return LocalStore(path_of(url))


def path_of(url: str) -> str:
    """The directory that a store URL names. Raises Invalid."""
    if not url or "\0" in url:
        raise Invalid(f"store {url!r}: expected {_SUPPORTED}, got {'nothing' if not url else 'a NUL character'}")
    if "://" not in url:
        return os.path.expanduser(url)
    scheme = url.partition("://")[0].lower()
    if scheme == "s3":
        raise Invalid(f"store {url}: s3:// is not supported yet", hint=f"use {_SUPPORTED}", code="not-supported-yet")
    if scheme != "file":
        raise Invalid(f"store {url}: expected {_SUPPORTED}, got scheme {scheme!r}", hint=f"use {_SUPPORTED}")
    return _path_of_file_url(url)


def _path_of_file_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        hint = "three slashes name a local path: file:///data/run; write %23 for # and %3F for ?"
        raise Invalid(f"store {url}: expected file:///path", hint=hint)
    return unquote(parts.path)
