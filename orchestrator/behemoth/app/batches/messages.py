"""What an executor and its workers say to each other: frames of `wire.frames`, both ends of one release."""

from __future__ import annotations

import msgspec

from behemoth.base import errors
from behemoth.base.errors import BehemothError, Internal
from behemoth.base.hidden import repr_without


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First message of a worker, with the token that it was started with."""

    node: str
    incarnation: int
    token: str

    def __repr__(self) -> str:
        return repr_without(self, "token")


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Open this job; a former one is over. `turn` counts the jobs of the executor: an answer tells it, since one of a
    job that was given up may still be on its way."""

    turn: int
    job: bytes
    threads: int


class RunBatch(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Do this batch of the open job."""

    number: int
    data: bytes


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Give the open job up: end what is under way, and begin nothing more."""

    turn: int


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """No batch of the job of this turn is under way, and all complete results have been sent."""

    turn: int


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The result of a batch."""

    turn: int
    number: int
    data: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A Behemoth error of a batch or of opening the job. `turn` is 0 where answers need none: a drain asks for one
    thing at a time."""

    turn: int = 0
    kind: str
    message: str
    hint: str
    code: str

    @staticmethod
    def of(error: BehemothError, *, turn: int = 0) -> Failed:
        kind = type(error).__name__
        return Failed(turn=turn, kind=kind, message=error.message, hint=error.hint, code=error.code)

    def error(self) -> BehemothError:
        """The same error, in this process."""
        kind = getattr(errors, self.kind, Internal)
        is_ours = isinstance(kind, type) and issubclass(kind, BehemothError)
        return (kind if is_ours else Internal)(self.message, hint=self.hint, code=self.code)


ToWorker = Open | RunBatch | Stop
FromWorker = Hello | Finished | Failed | Stopped

to_worker_decoder = msgspec.msgpack.Decoder(ToWorker)
from_worker_decoder = msgspec.msgpack.Decoder(FromWorker)
