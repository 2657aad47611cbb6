"""What an executor and its workers say to each other: frames of `wire.frames`, both ends of one release."""

from __future__ import annotations

import msgspec

from behemoth.base import errors
from behemoth.base.errors import BehemothError, Internal


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First word of a worker, with the token that it was started with."""

    node: str
    incarnation: int
    token: str


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Open this job; a former one is over."""

    job: bytes
    threads: int


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Do this batch of the open job."""

    number: int
    data: bytes


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The result of a batch."""

    number: int
    data: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """An error of ours, of a batch or of opening the job."""

    kind: str
    message: str
    hint: str
    code: str

    @staticmethod
    def of(error: BehemothError) -> Failed:
        return Failed(kind=type(error).__name__, message=error.message, hint=error.hint, code=error.code)

    def error(self) -> BehemothError:
        """The same error, in this process."""
        kind = getattr(errors, self.kind, Internal)
        is_ours = isinstance(kind, type) and issubclass(kind, BehemothError)
        return (kind if is_ours else Internal)(self.message, hint=self.hint, code=self.code)


ToWorker = Open | Run
FromWorker = Hello | Finished | Failed

to_worker_decoder = msgspec.msgpack.Decoder(ToWorker)
from_worker_decoder = msgspec.msgpack.Decoder(FromWorker)
