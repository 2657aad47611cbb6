"""Decodes bytes from a disk or a peer into our types; what msgspec raises for invalid documents, and how to quote it.
Callers turn those errors into Behemoth's own.

msgspec 0.22 collects its information about a type, by running Python, when the type is first decoded; a second thread
that decodes the same type meanwhile sees it incomplete, and the process ends by a segmentation fault. So threads decode
through these functions, which serialize the first use of a type. Decoders at module level are safe: they are made at
import, before there are threads. Neighbours: every module that reads what a disk or a peer may have mangled.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final, TypeVar, overload

import msgspec
from typing_extensions import Buffer

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for invalid input. Besides its own errors, msgspec lets two of Python's through: for text that
is not UTF-8, and for documents that are nested too deeply, even in ignored fields."""

_T = TypeVar("_T")

_first = threading.Lock()
os.register_at_fork(before=_first.acquire, after_in_parent=_first.release, after_in_child=_first.release)
_decoders: dict[tuple[object, object], Any] = {}


@overload
def decode_json(data: Buffer, kind: type[_T]) -> _T: ...
@overload
def decode_json(data: Buffer, kind: Any) -> Any: ...
def decode_json(data: Buffer, kind: Any) -> Any:
    """A document of JSON as a value of this type. Raises what `UNDECODABLE` names."""
    return _decoder(msgspec.json.Decoder, kind).decode(data)


@overload
def decode_msgpack(data: Buffer, kind: type[_T]) -> _T: ...
@overload
def decode_msgpack(data: Buffer, kind: Any) -> Any: ...
def decode_msgpack(data: Buffer, kind: Any) -> Any:
    """A document of msgpack as a value of this type. Raises what `UNDECODABLE` names."""
    return _decoder(msgspec.msgpack.Decoder, kind).decode(data)


def decode_builtins(value: object, kind: type[_T]) -> _T:
    """Parsed plain values (dicts, lists) as a value of this type. Raises msgspec.ValidationError."""
    _decoder(msgspec.json.Decoder, kind)  # for what msgspec then knows of the type
    return msgspec.convert(value, kind)


def told(error: Exception) -> str:
    """A decoder's error message, to be quoted inside another one: begins in lower case, unless with an abbreviation."""
    text = str(error)
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _decoder(codec: type[msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]], kind: object) -> Any:
    found = _decoders.get((codec, kind))
    if found is None:
        with _first:
            found = _decoders[codec, kind] = codec(kind)
    return found
