"""Bytes of a disk or a peer as values of our types; what msgspec raises for those that are no such document, and its
words in ours. Whoever decodes turns all of it into an error of ours.

msgspec gathers what it has to know of a type when that is first asked for, by running Python; a thread that comes for
the same type meanwhile finds it half done, and the process ends by a segmentation fault (0.22). So threads decode by
these functions, which let one at a time come first. A decoder that stands in a module is made while that is imported,
before there are threads. Neighbours: every module that reads what a disk or a peer may have mangled.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final, TypeVar, overload

import msgspec
from typing_extensions import Buffer

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Besides its own error msgspec lets two of Python's through: of text that is no UTF-8, and of what is nested too
deeply, also in fields that are passed over."""

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
    """What a reader of documents gave, dicts and lists, as a value of this type. Raises msgspec.ValidationError."""
    _decoder(msgspec.json.Decoder, kind)  # for what msgspec then knows of the type
    return msgspec.convert(value, kind)


def told(error: Exception) -> str:
    """A decoder's words as they go on within a message: its first one small, unless that is an abbreviation."""
    text = str(error)
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _decoder(codec: type[msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]], kind: object) -> Any:
    found = _decoders.get((codec, kind))
    if found is None:
        with _first:
            found = _decoders[codec, kind] = codec(kind)
    return found
