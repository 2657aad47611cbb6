"""Requests and answers of HTTP/1.1 as bytes, as far as a proxy must understand them. The neighbour is `fault_proxy`."""

from __future__ import annotations

import socket

CHUNK_BYTES = 64 << 10


def receive_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Everything up to the empty line, with it, and what came of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(CHUNK_BYTES)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


def receive_body(sock: socket.socket, got: bytes, num_bytes: int) -> bytes:
    data = bytearray(got)
    while len(data) < num_bytes:
        chunk = sock.recv(min(CHUNK_BYTES, num_bytes - len(data)))
        if not chunk:
            raise ConnectionError(f"expected {num_bytes} bytes, got {len(data)}")
        data += chunk
    return bytes(data)


def field_of(head: bytes, name: bytes) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode()
    return None


def without(head: bytes, name: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(name + b":")]
    return b"\r\n".join([*lines, b"", b""])


def refusal(status: str, code: str) -> bytes:
    return xml_answer(status, f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>")


def xml_answer(status: str, text: str) -> bytes:
    body = text.encode()
    fields = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body
