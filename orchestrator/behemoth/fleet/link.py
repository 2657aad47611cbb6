"""One agent's connection, after its handshake: bounded output, and when it was last heard."""

from __future__ import annotations

import asyncio

from behemoth.base.ids import NodeId
from behemoth.wire.frames import MAX_FRAME_BYTES

MAX_BACKLOG_BYTES = 4 * MAX_FRAME_BYTES
"""The connection of an agent that leaves more than this unread is closed."""


class Link:
    """Owned by the server's event loop. `heard_us` is the coordinator's clock at the last frame."""

    def __init__(
        self,
        node: NodeId,
        incarnation: int,
        host: str,
        rendezvous_port: int,
        peer_port: int,
        writer: asyncio.StreamWriter,
        heard_us: int,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.host = host
        self.rendezvous_port = rendezvous_port
        self.peer_port = peer_port
        self.heard_us = heard_us
        self._writer = writer

    def send(self, frame: bytes) -> None:
        """Queues the frame; never blocks. Cuts the connection when the agent does not read."""
        if self._writer.is_closing():
            return
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            self._writer.transport.abort()

    def cut(self) -> None:
        """Closes after what is queued has been sent."""
        self._writer.close()
