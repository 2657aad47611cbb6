"""The Protocols that adapters implement, each at most six methods.

The core and the checkpoint engine speak to the world through these and nothing else. A Protocol stays here only while
at least two adapters pass its conformance suite (`behemoth.testing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from typing_extensions import Buffer

from behemoth.base.ids import NodeId, UploadId

MIN_PART_BYTES = 5 << 20
"""Size of every part of an upload but the last (Amazon S3 user guide, "Multipart upload limits")."""
MAX_PART_BYTES = 5 << 30
"""Size of one part; same source."""
MAX_PARTS = 10_000
"""Number of parts of one upload; same source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of one positional write: `buffers` are concatenated and land at `offset_bytes` of the object."""

    offset_bytes: int
    buffers: Sequence[Buffer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a listing tells of one object."""

    key: str
    size_bytes: int
    etag: str = field(default="", compare=False)
    """The store's own word for the bytes, opaque; empty where it has none (files)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReceipt:
    """What the store answered to one part of an upload; `complete_upload` wants all of them."""

    number: int
    """From 1."""
    etag: str
    """The store's own word for these bytes, opaque."""
    crc: int
    """CRC-32C."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedUpload:
    """What a listing tells of one upload."""

    key: str
    upload_id: UploadId
    age_s: float
    """Since it was begun, by the store's own clock alone."""


Into: TypeAlias = Buffer | tuple[Buffer, ...]
"""What a read fills: a buffer, or several, one behind the other."""


class ObjectStore(Protocol):
    """Where checkpoints lie. Keys are `/`-separated relative paths without `.`, `..` or empty segments.

    Exactly these methods, because they are what a local directory, NFS and S3 can all do crash-safely, and all that
    readers, the commit log and gc need: small objects are created if absent, or replaced if they are what the caller
    knows; reads are ranged and land in the caller's buffers. How large objects come to be differs: WritesRanges,
    UploadsParts. All methods block and are thread-safe; errors are Behemoth's (NotFound, Denied, Unavailable, Corrupt,
    Conflict).
    """

    def create(self, key: str, data: Buffer) -> None:
        """Create a small object, whole and durable, only if absent: never a partial or empty one, whatever is killed
        when. Raises Conflict when it exists, and is durable."""
        ...

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        """Put `new` in the place of a small object that holds `old`, in one instant and durably: at no time is there
        neither, whatever is killed when. Idempotent: one that holds `new` already is fine. Raises NotFound, and
        Conflict `changed` for one that holds something else. Files have one such caller at a time; in a bucket one of
        several wins, and a request that is carried out when its sender is dead finds `old` gone, where the server knows
        the condition."""
        ...

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        """Fill `into` from `offset_bytes`. Raises NotFound, or Corrupt when the object is too short; `into` may then
        hold a part."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix` (a key segment boundary), in key order, unsealed ones included."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, durably on return, in any order: what must go first takes a call of its own. Missing ones are
        fine. Empty folders go with their last object."""
        ...


@runtime_checkable
class WritesRanges(ObjectStore, Protocol):
    """A store in which many writers fill one object at known offsets, and somebody seals it: files.

    Not part of ObjectStore, because an object of S3 appears whole or not at all.
    """

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        """Write parts of an object whose final size is known. Several processes may do so at once on disjoint
        ranges. Idempotent. Nothing is promised durable before `seal`."""
        ...

    def seal(self, keys: Sequence[str]) -> None:
        """Make what this process wrote under `keys` durable (fsync of files and their directories)."""
        ...


@runtime_checkable
class UploadsParts(ObjectStore, Protocol):
    """A store in which many uploaders send numbered parts of one object, and somebody completes it: S3.

    Not part of ObjectStore, because files need none of it. The upload id is all that a process must be told to take
    part, so uploader and completer may be different ones, and a lost completer has a successor. Nothing is visible
    before completion; an upload that nobody completes or aborts is kept, and paid for, until somebody aborts it.
    """

    def begin_upload(self, key: str) -> UploadId:
        """Begin an upload of an object. Any number may be under way for one key; the first to complete has it."""
        ...

    def upload_part(
        self, key: str, upload_id: UploadId, *, number: int, buffers: Sequence[Buffer], crc: int
    ) -> PartReceipt:
        """Upload part `number`, from 1, as the concatenation of `buffers`, whose CRC-32C is `crc`; durable on return. A
        part that is uploaded again is replaced.

        Raises Invalid for a number, an amount of bytes or a buffer that cannot be, NotFound `upload-gone` when the
        upload was completed or aborted, Corrupt when the store received something else than `crc` says.
        """
        ...

    def complete_upload(self, key: str, upload_id: UploadId, *, parts: Sequence[PartReceipt], crc: int) -> None:
        """Make one object of parts 1 .. n, only if absent; `crc` is the CRC-32C of the whole. The upload is gone
        afterwards. Idempotent: an object that has exactly these bytes already is one that an earlier call, or another
        completer, has made.

        Raises Invalid for parts that are not 1 .. n or are too small (MIN_PART_BYTES, the last one apart), Conflict
        `exists` when an object of other bytes stands there, Conflict `upload-part` when a part was replaced since its
        receipt, NotFound `upload-gone`, Corrupt when the parts do not add up to `crc`. The upload is left to the caller
        then, who goes on or aborts.
        """
        ...

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        """End an upload and drop its parts; one that is gone is fine. A part that arrives meanwhile may be kept, so who
        cannot be sure that all uploaders have ended looks at `list_uploads` again later."""
        ...

    def list_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads of keys below `prefix` that were neither completed nor aborted, in key order."""
        ...


SavesTo: TypeAlias = WritesRanges | UploadsParts
"""A store to which runs save: large objects come to be in one of the two ways."""


@runtime_checkable
class DeletesListed(Protocol):
    """A store that can remove an object only if it is still the one that was listed: S3, which knows it by its ETag.

    Not part of ObjectStore, because files need none of it: what a process asked of them is done, or not, when it ends.
    In a bucket a request may be carried out when its sender is long dead, and another object has the name.
    """

    def delete_listed(self, info: ObjectInfo) -> None:
        """Remove the object that a listing told, durably on return. A missing one is fine; one that has taken its name
        since stays, where the server knows the condition."""
        ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A store whose objects are files that other processes of this machine can read.

    Not part of ObjectStore, because S3 has nothing of the kind; who asks does without where a store is none.
    """

    def folder(self, prefix: str) -> str:
        """Absolute path of the folder that holds the objects below `prefix` as files."""
        ...

    def cached_share(self, ranges: Iterable[tuple[str, int, int]]) -> float:
        """How much of `ranges` (key, offset and length in bytes) the machine's page cache holds, 0 .. 1; 0 when nobody
        can tell. Raises NotFound."""
        ...

    def is_on_network(self) -> bool:
        """Whether the files come from servers that every node asks for them, so that what one node reads is taken from
        all others; False when nobody can tell."""
        ...


@runtime_checkable
class MovesObjects(Protocol):
    """A store in which a whole object can be given another name in one instant.

    Not part of ObjectStore, because S3 cannot do it. Needed to write files for other programs, which take any file with
    the right name for complete: the file is written under another name first.
    """

    def move(self, source: str, target: str) -> None:
        """Give a sealed object the name `target`, durably, and take `source` from it. After a crash it may have both
        names. Raises NotFound, and Conflict when the target exists."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGone:
    """The runtime's word that a node's agent has ended. `reason` is one sentence for people."""

    node: NodeId
    incarnation: int
    reason: str


AGENT_LOG_VARIABLE = "BEHEMOTH_AGENT_LOG"
"""In the `env` of `Runtime.start_agent`: path of a file to which the agent's stdout and stderr are appended; without it
they are discarded."""
LIFELINE_VARIABLE = "BEHEMOTH_LIFELINE_FD"
"""Set by a Runtime for the agent: number of a descriptor that becomes readable (end of file) when the Runtime ends the
agent, or has itself died. The agent then has a moment to end by itself."""


class Runtime(Protocol):
    """Starts and stops agents on machines, and tells which are lost; it takes no part in recovery beyond that.

    Ray on a workstation, pods on a cluster, plain processes in tests. All methods may block for seconds and are called
    from one thread; none may be called after `close`.
    """

    def nodes(self) -> Sequence[NodeId]:
        """Nodes on which an agent could run, in placement order."""
        ...

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        """Start the program `argv` on `node` and watch it. `env` is added to the machine's environment; see
        AGENT_LOG_VARIABLE and LIFELINE_VARIABLE. A second call for the same incarnation does nothing. Raises
        Unavailable when the machine is gone."""
        ...

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        """End it and everything below it, by force if needed; a missing one is fine."""
        ...

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        """Wait up to `timeout_s` for agents that ended by themselves; each is told once."""
        ...

    def close(self) -> None:
        """End every agent and release the engine; leaves no process behind."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A piece of a job, or, as a result, what came of it: plain data that whoever knows the job understands."""

    number: int
    data: bytes


class Executor(Protocol):
    """Runs the batches of a job: on threads of this process, or on machines, a worker each.

    Exactly these methods, because a job is data that a worker opens once and batches follow from it in closed form: no
    function travels, and a result that is kept needs no worker that remembers it. Called from one thread.
    """

    def run(self, job: bytes, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Results in any order, as they come; few batches are under way at a time. A batch whose worker is lost runs
        again, perhaps while the first one still does, so batches are idempotent. Raises the error of a batch, and
        Unavailable when no worker is left, or when one batch ends worker after worker. A caller that leaves the
        iterator before its end, by an error or otherwise, calls `stop`, or only `close`."""
        ...

    def stop(self) -> list[Batch]:
        """Give up the job whose `run` was left before its end; does nothing when there is none. Blocks until no batch
        is under way; large ones give up early. Returns the results that were complete by then, among them perhaps the
        one that `run` yielded last."""
        ...

    def close(self) -> None:
        """End what is under way, and every worker. Idempotent."""
        ...
