"""Threads that decode into types which nobody has decoded into before: a program of its own, since what it looks for
ends the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from behemoth.base.decoding import decode_json, decode_msgpack

NUM_THREADS, NUM_TYPES = 4, 200
Count = Annotated[int, msgspec.Meta(ge=0)]


def main() -> None:
    sys.setswitchinterval(1e-6)
    for number in range(NUM_TYPES):
        inner: Any = msgspec.defstruct("Inner", [("a", Count), ("b", tuple[str, ...])])
        kind = msgspec.defstruct(
            f"Type{number}", [(f"f{at}", Count) for at in range(20)] + [("many", tuple[inner, ...])]
        )
        value = {**{f"f{at}": at for at in range(20)}, "many": [{"a": 1, "b": ["x"]}]}
        codec, decode = ((msgspec.json, decode_json), (msgspec.msgpack, decode_msgpack))[number % 2]
        data, ready, found = codec.encode(value), threading.Barrier(NUM_THREADS), list[object]()

        def first(
            data: bytes = data,
            ready: threading.Barrier = ready,
            found: list[object] = found,
            kind: type[msgspec.Struct] = kind,
            decode: Callable[..., Any] = decode,
        ) -> None:
            ready.wait()
            found.append(msgspec.to_builtins(decode(data, kind)))

        threads = [threading.Thread(target=first) for _ in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = msgspec.to_builtins(codec.decode(data))
        assert [msgspec.json.encode(one) for one in found] == NUM_THREADS * [msgspec.json.encode(expected)]


if __name__ == "__main__":
    main()
