"""From the URL in a run's spec, or a path on the command line, to an ObjectStore.

The only place that knows which adapters exist. Must not touch the store: opening is free, the first use may fail.
Neighbours: `local`, `linked`, `s3`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from behemoth.base.errors import Invalid
from behemoth.storage.linked import LinkedFolder
from behemoth.storage.local import LocalStore
from behemoth.storage.mounts import is_on_network
from behemoth.storage.s3_place import parse_s3

if TYPE_CHECKING:
    from behemoth.storage.s3 import S3Store

_FILES = "a path or file:///path"
_SUPPORTED = f"{_FILES}, or s3://bucket/prefix"


def open_store(url: str) -> LocalStore | S3Store:
    """A store for a plain path (relative to the working directory, `~` is the home), `file:///path` or
    `s3://bucket/prefix`. The caller closes it. Raises Invalid for anything else."""
    return open_bucket(url) if is_s3(url) else open_files(url)


def open_bucket(url: str) -> S3Store:
    """The store of an `s3://` URL. Raises Invalid."""
    from behemoth.storage.s3 import S3Store  # botocore takes a second to load

    return S3Store(parse_s3(url))


def open_files(url: str, *, direct_writes: bool = True) -> LocalStore:
    """As `open_store`, for what only a directory can do; `direct_writes`: see LocalStore. Raises Invalid for
    `s3://`."""
    return LocalStore(path_of(url), direct_writes=direct_writes)


def open_private(path: str) -> LocalStore:
    """A folder for what is nobody else's business: readable by the owner only."""
    return LocalStore(path, is_private=True)


def open_source(url: str) -> LinkedFolder | S3Store:
    """What other programs wrote, for reading: as `open_store`, and links to files are followed."""
    return open_bucket(url) if is_s3(url) else LinkedFolder(path_of(url))


def is_s3(url: str) -> bool:
    """Whether a URL names a bucket."""
    return _scheme(url) == "s3"


def is_served(url: str) -> bool:
    """Whether all nodes ask the same servers for what lies there: those of a bucket, or of a network file system as
    this machine has it mounted. Raises Invalid."""
    return is_s3(url) or is_on_network(path_of(url))


def located(url: str, store: LocalStore | LinkedFolder | S3Store) -> str:
    """What leads another process of this machine to the store that was opened for `url`, wherever it works: the
    absolute path of a folder, the URL of a bucket with all that it says."""
    return url if is_s3(url) else store.root


def is_nested(url: str, other: str) -> bool:
    """Whether one of two URLs names a place within the other's, or both name the same one."""
    if is_s3(url) != is_s3(other):
        return False
    one, two = _folders(url), _folders(other)
    num_common = min(len(one), len(two))
    return one[:num_common] == two[:num_common]


def path_of(url: str) -> str:
    """The directory that a store URL names. Raises Invalid, which of a URL that was refused repeats the scheme alone:
    a presigned one is a credential."""
    if not url or "\0" in url:
        raise Invalid(f"store {url!r}: expected {_SUPPORTED}, got {'nothing' if not url else 'a NUL character'}")
    if "://" not in url:
        return os.path.expanduser(url)
    if is_s3(url):
        raise Invalid(
            f"store {parse_s3(url)}: expected {_FILES} here, got s3://",
            hint="positional writes, which this needs, are not possible there",
            code="not-supported-yet",
        )
    if _scheme(url) != "file":
        message = f"store {_scheme(url)[:20]}://...: expected {_SUPPORTED}, got another scheme"
        raise Invalid(message, hint=f"use {_SUPPORTED}", code="store-url")
    return _path_of_file_url(url)


def _folders(url: str) -> Sequence[str]:
    """The bucket and what its prefix consists of, or what a path does."""
    if is_s3(url):
        place = parse_s3(url)
        return [place.bucket, *filter(None, place.prefix.split("/"))]
    return Path(os.path.realpath(path_of(url))).parts


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _path_of_file_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _no_file_url("a host that cannot be") from None  # which would tell it
    if parts.netloc not in ("", "localhost"):
        raise _no_file_url("a host")
    if not parts.path:
        raise _no_file_url("no path")
    if parts.query or parts.fragment:
        raise _no_file_url("more")
    return unquote(parts.path)


def _no_file_url(got: str) -> Invalid:
    hint = "three slashes name a local path: file:///data/run; write %23 for # and %3F for ?"
    return Invalid(f"store file://...: expected file:///path, got {got}", hint=hint, code="store-url")
