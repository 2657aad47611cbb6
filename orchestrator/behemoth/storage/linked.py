"""A read-only store on a folder of another program, in which symbolic links to files are followed.

Hugging Face's cache stores snapshots this way: `snapshots/REVISION/model.safetensors` links to `../../blobs/DIGEST`.
Our stores contain no links, and `local` follows none, since it writes and deletes; this adapter only reads. Neighbour:
`local`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NoReturn

from typing_extensions import Buffer

from behemoth.base.errors import Denied, NotFound
from behemoth.ports import Into, ObjectInfo
from behemoth.storage.keys import segments_of
from behemoth.storage.local import LocalStore
from behemoth.storage.os_errors import named_errors


class LinkedFolder:
    """An ObjectStore that only reads. Thread-safe."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._files = LocalStore(root)

    @property
    def root(self) -> str:
        """Absolute path of the folder."""
        return self._files.root

    def create(self, key: str, data: Buffer) -> None:
        """Raises Denied."""
        self._refuse(f"create {key} of {memoryview(data).nbytes} bytes")

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        """Raises Denied."""
        self._refuse(f"replace {key} of {memoryview(old).nbytes} bytes by {memoryview(new).nbytes} bytes")

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        """See the port. Raises NotFound for a link that leads nowhere."""
        path = self._path(key)
        if not os.path.islink(path):
            self._files.read_into(key, offset_bytes=offset_bytes, into=into)
            return
        if not os.path.exists(path):
            raise NotFound(
                f"link {path}: expected a file where it leads, got none",
                hint="the download may not have ended; or copy the folder with what its links lead to",
                code="link-dangling",
            )
        folder, name = os.path.split(os.path.realpath(path))
        LocalStore(folder).read_into(name, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port. A link is listed with the size of its target; a dangling one as itself, since it may be none of
        the files that the caller wants."""
        for info in self._files.list(prefix):
            path = os.path.join(self.root, info.key)
            with named_errors(f"list {path}"):
                if not os.path.islink(path) or not os.path.exists(path):
                    yield info
                elif os.path.isfile(path):
                    yield ObjectInfo(key=info.key, size_bytes=os.stat(path).st_size)

    def delete(self, keys: Sequence[str]) -> None:
        """Raises Denied."""
        self._refuse(f"delete {', '.join(keys[:3])}")

    def close(self) -> None:
        self._files.close()

    def _path(self, key: str) -> str:
        return os.path.join(self.root, *segments_of(key))

    def _refuse(self, doing: str) -> NoReturn:
        raise Denied(
            f"{doing}: expected only reads of {self.root}, which is another program's, got a write", code="read-only"
        )
