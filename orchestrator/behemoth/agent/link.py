"""The agent's connection to its coordinator: handshake, reconnection with jitter, frames both ways.

It does not interpret commands: `main` acts on them. Reports that are sent without a connection are dropped; after a
reconnect `main` sends the present state again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from behemoth.agent.settings import AgentSettings
from behemoth.base.errors import BehemothError, Denied, Unavailable
from behemoth.base.ids import Attempt
from behemoth.wire import frames
from behemoth.wire.commands import Command, Rejected, Welcome
from behemoth.wire.reports import Hello

CONNECT_LIMIT_S = 5.0
HANDSHAKE_LIMIT_S = 10.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
"""Bounds of the pause between two tries. Each pause is drawn at random, so that 4,000 agents reconnect to a new
coordinator over seconds, not at one instant."""

_COMMANDS = msgspec.msgpack.Decoder(Command)
_log = logging.getLogger(__name__)


class Introduction(NamedTuple):
    """The attempt that runs here (0: none), the reserved rendezvous port, and the port for peers."""

    attempt: Attempt
    rendezvous_port: int
    peer_port: int


class Listener(Protocol):
    """Acts on what the link receives. Called in the event loop; must not block it."""

    def introduction(self, host: str) -> Introduction:
        """What this node says of itself; `host` is its address."""
        ...

    def welcomed(self, welcome: Welcome) -> None:
        """The connection is up."""
        ...

    def command(self, command: Command) -> None:
        """Anything after Welcome."""
        ...

    def parted(self, reason: str) -> None:
        """The connection is down; the link goes on trying."""
        ...


class Link:
    """One connection at a time, for as long as `run` runs."""

    def __init__(self, settings: AgentSettings, listener: Listener, *, pause: Callable[[float], float]) -> None:
        self._settings = settings
        self._listener = listener
        self._pause = pause
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Never returns. Raises Denied when the coordinator will never have this agent."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._talk()
                pause_s = FIRST_PAUSE_S
            except Denied:
                raise
            except (BehemothError, TimeoutError, OSError) as error:
                was_up = self._writer is not None
                self._hang_up()
                if was_up:
                    pause_s = FIRST_PAUSE_S
                    self._listener.parted(str(error))
            await asyncio.sleep(self._pause(pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def send(self, report: object) -> None:
        """Never blocks; dropped without a connection."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames.encode_frame(report))

    async def flush(self, *, timeout_s: float) -> None:
        """Until what was sent has left, or the time is over."""
        if self._writer is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._writer.drain()
            except (TimeoutError, OSError):
                _log.warning("the last reports did not leave in time")

    async def _talk(self) -> None:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            reader, writer = await asyncio.open_connection(self._settings.host, self._settings.port)
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT_S):
                welcome = await self._shake_hands(reader, writer)
        except BaseException:
            writer.close()
            raise
        self._writer = writer
        self._listener.welcomed(welcome)
        while True:
            self._listener.command(frames.decode_body(_COMMANDS, await frames.read_frame(reader)))

    async def _shake_hands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Welcome:
        host = str(writer.get_extra_info("sockname")[0])
        here = self._listener.introduction(host)
        hello = Hello(
            major=frames.PROTOCOL_MAJOR,
            minor=frames.PROTOCOL_MINOR,
            run_uid=self._settings.run_uid,
            node=self._settings.node,
            incarnation=self._settings.incarnation,
            token=self._settings.token,
            host=host,
            rendezvous_port=here.rendezvous_port,
            attempt=here.attempt,
            peer_port=here.peer_port,
        )
        writer.write(frames.encode_frame(hello))
        await writer.drain()
        answer = frames.decode_body(_COMMANDS, await frames.read_frame(reader))
        if isinstance(answer, Rejected):
            raise Denied(f"coordinator: {answer.reason}", code=answer.code)
        if not isinstance(answer, Welcome):
            raise Unavailable(f"coordinator: expected a welcome, got {type(answer).__name__}")
        return answer

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def jitter(pause_s: float) -> float:
    """Between half and one and a half of `pause_s`."""
    return pause_s * random.uniform(0.5, 1.5)
