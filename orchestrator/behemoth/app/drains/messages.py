"""What the leader and its drain process say to each other: lines of JSON, both ends of one release."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from behemoth.app.batches.messages import Failed
from behemoth.base.ids import RunUid
from behemoth.policy.retention import Retention
from behemoth.state.effect import CommitRef

MAX_LINE_BYTES = 1 << 20

_T = TypeVar("_T")


class Settings(msgspec.Struct, frozen=True, kw_only=True, tag="settings"):
    """First word of the leader. `source` and `target` are URLs of stores."""

    source: str
    target: str
    run_uid: RunUid
    threads: int
    rate: int | None
    retention: Retention


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Copy this commit; asked again only once the answer has come."""

    commit: CommitRef


class GiveWay(msgspec.Struct, frozen=True, kw_only=True, tag="give-way"):
    """Whether a save is being written, at any time between the others; not answered."""

    is_saving: bool


class Drained(msgspec.Struct, frozen=True, kw_only=True, tag="drained"):
    """It is in the second store, durably. `num_bytes` were copied, the others were there. `untidy` says why what
    retention gives up there stays, empty where it went."""

    num_bytes: int
    seconds: float
    untidy: str = ""


ToDrain = Settings | Drain | GiveWay
FromDrain = Drained | Failed
TO_DRAIN: msgspec.json.Decoder[Settings | Drain | GiveWay] = msgspec.json.Decoder(Settings | Drain | GiveWay)
FROM_DRAIN: msgspec.json.Decoder[Drained | Failed] = msgspec.json.Decoder(Drained | Failed)


def send(sock: socket.socket, message: ToDrain | FromDrain) -> None:
    """Blocks while the other end does not read. Raises OSError when it is gone."""
    sock.sendall(encoded(message))


def encoded(message: ToDrain | FromDrain) -> bytes:
    """A message as it travels."""
    return msgspec.json.encode(message) + b"\n"


def received(sock: socket.socket, decoder: msgspec.json.Decoder[_T]) -> Iterator[_T]:
    """Messages until the other end is gone: one that was killed while it spoke has not said what is cut off."""
    with sock.makefile("rb") as lines:
        while (line := lines.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            yield decoder.decode(line)
