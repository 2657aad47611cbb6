"""The other node of `restore_tiers`: a rank's staged memory, served by our protocol and by bare sendfile.

    python -m programs.peer_memory NUM_LAYERS

Prints one line of JSON with both ports, and ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

import numpy as np
from programs.tiers_scene import ASKED, STEP, WRITE_ID, identity, plan

from behemoth.agent.memories import Memories
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.server import PeerServer
from behemoth.checkpoint.crc import crc32c

RANGE = struct.Struct("<QQ")


def main() -> None:
    rank = plan(int(sys.argv[1]))
    fd = os.memfd_create("peer-memory", os.MFD_ALLOW_SEALING)
    memories = Memories(num_ranks=1)
    arena = memories.mapped(rank.rank, fd, new=rank)
    data = arena.begin(0, WRITE_ID, STEP, rank.layout_digest)
    np.frombuffer(data, dtype=np.uint8)[:] = np.random.default_rng(1).integers(0, 256, len(data), dtype=np.uint8)
    crcs = [crc32c(data[one.arena_offset : one.arena_offset + one.length]) for one in rank.spans]
    arena.record_crcs(0, arena.seal(0).sequence, crcs)
    listener, raw = listen_for_peers("127.0.0.1"), listen_for_peers("127.0.0.1")
    PeerServer(listener, identity(ASKED), memories.handlers()).start()
    threading.Thread(target=accept_raw, args=(raw, fd, arena.data_offset_bytes(0)), daemon=True).start()
    print(json.dumps({"peer": listener.getsockname()[1], "raw": raw.getsockname()[1]}), flush=True)
    sys.stdin.read()
    os._exit(0)  # threads that serve wait for ever


def accept_raw(raw: socket.socket, fd: int, base: int) -> None:
    while True:
        sock, _ = raw.accept()
        threading.Thread(target=serve_raw, args=(sock, fd, base), daemon=True).start()


def serve_raw(sock: socket.socket, fd: int, base: int) -> None:
    """Ranges in, their bytes out, and nothing else."""
    while asked := sock.recv(RANGE.size, socket.MSG_WAITALL):
        offset, length = RANGE.unpack(asked)
        end = offset + length
        while offset < end:
            offset += os.sendfile(sock.fileno(), fd, base + offset, end - offset)


if __name__ == "__main__":
    main()
