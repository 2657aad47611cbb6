"""What a RayRuntime and its Ray host say to each other: JSON lines over a socket pair, both ends on one machine.

Both ends come from one installation, so there is no version. The neighbours are `behemoth.rayrt.runtime`, which asks,
and `behemoth.rayrt.host`, which answers each request once and tells ends in between.
"""

from __future__ import annotations

import msgspec

from behemoth.base.hidden import repr_without


class Embed(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """First word to a host: start a Ray of your own below `temp_dir`, with these logical nodes."""

    nodes: list[str]
    temp_dir: str


class Join(msgspec.Struct, frozen=True, kw_only=True, tag="join"):
    """First word to a host: connect to the Ray at `address`; every node of Ray's is one node."""

    address: str


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Start an agent; an older one of the node has been stopped."""

    node: str
    incarnation: int
    argv: list[str]
    env: dict[str, str]

    def __repr__(self) -> str:
        return repr_without(self, "env")


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """End an agent and everything below it; a missing one is fine."""

    node: str
    incarnation: int


class ListNodes(msgspec.Struct, frozen=True, kw_only=True, tag="list-nodes"):
    """Ask for the nodes that are alive."""


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """End all agents, let go of Ray, answer, exit."""


class Imported(msgspec.Struct, frozen=True, kw_only=True, tag="imported"):
    """The host has loaded ray; from here on the clock of the connection runs."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The request was carried out; `nodes` answers ListNodes."""

    nodes: list[str] = []


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The request was not carried out, because Ray or a machine does not answer."""

    message: str
    hint: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """An agent ended, or the actor that watched it; no answer to anything."""

    node: str
    incarnation: int
    reason: str


Request = Embed | Join | Start | Stop | ListNodes | Leave
Answer = Imported | Done | Failed | Ended

_encoder = msgspec.json.Encoder()
request_decoder = msgspec.json.Decoder(Request)
answer_decoder = msgspec.json.Decoder(Answer)


def encode_line(frame: Request | Answer) -> bytes:
    """One frame as a line, newline included (JSON escapes those inside)."""
    return _encoder.encode(frame) + b"\n"
