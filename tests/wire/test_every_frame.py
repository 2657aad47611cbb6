"""Whatever comes over a connection of ours is a message or Corrupt: every decoder, every kind of message."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from behemoth.agent.forkwire import FORK_REPORTS, ORDERS
from behemoth.agent.storewire import STORE_ORDERS, STORE_REPORTS
from behemoth.app.batches.messages import from_worker_decoder, to_worker_decoder
from behemoth.base.errors import Corrupt
from behemoth.wire.commands import Command
from behemoth.wire.frames import decode_body
from behemoth.wire.reports import Report
from behemoth.wire.session import FROM_WORKER, TO_WORKER
from checkpoint.mangled import mangled_bytes, mangled_document

DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "worker to agent": FROM_WORKER,
    "agent to worker": TO_WORKER,
    "agent to fork server": ORDERS,
    "fork server to agent": FORK_REPORTS,
    "agent to store process": STORE_ORDERS,
    "store process to agent": STORE_REPORTS,
    "coordinator to agent": msgspec.msgpack.Decoder(Command),
    "agent to coordinator": msgspec.msgpack.Decoder(Report),
    "batches to worker": to_worker_decoder,
    "worker to batches": from_worker_decoder,
}


def plain(kind: inspect.Type) -> Any:
    """A document of this type, as it travels: everything that may be left out is there, collections have an item."""
    match kind:
        case inspect.StructType():
            tag = {} if kind.tag_field is None else {kind.tag_field: kind.tag}
            document = {**tag, **{one.encode_name: plain(one.type) for one in kind.fields}}
            return list(document.values()) if kind.array_like else document
        case inspect.DataclassType() | inspect.TypedDictType():
            return {one.encode_name: plain(one.type) for one in kind.fields}
        case inspect.NamedTupleType():
            return [plain(one.type) for one in kind.fields]
        case inspect.TupleType():
            return [plain(one) for one in kind.item_types]
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType() | inspect.FrozenSetType():
            return [plain(kind.item_type)]
        case inspect.DictType():
            return {plain(kind.key_type): plain(kind.value_type)}
        case inspect.UnionType():
            return plain(kind.types[0])
        case inspect.LiteralType() | inspect.EnumType():
            return kind.values[0] if isinstance(kind, inspect.LiteralType) else next(iter(kind.cls)).value
        case inspect.IntType():
            return max(1, kind.ge or 0)
        case inspect.StrType():
            return "x" * max(1, kind.min_length or 0)
        case inspect.BytesType():
            return b"x" * max(1, kind.min_length or 0)
        case inspect.FloatType():
            return 0.5
        case inspect.BoolType():
            return True
        case inspect.NoneType():
            return None
        case inspect.AnyType() | inspect.RawType():
            return {"any": [1]}
        case _:
            raise AssertionError(f"no document of {kind}: add it")


def messages(decoder: msgspec.msgpack.Decoder[Any]) -> list[Any]:
    """One of each kind that it takes."""
    kind = inspect.type_info(decoder.type)
    return [plain(one) for one in (kind.types if isinstance(kind, inspect.UnionType) else [kind])]


@pytest.mark.parametrize("name", DECODERS)
def test_one_message_of_each_kind_is_understood(name: str) -> None:
    for document in messages(DECODERS[name]):
        assert isinstance(decode_body(DECODERS[name], msgspec.msgpack.encode(document)), DECODERS[name].type)


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None)
@given(data=st.data())
def test_a_mangled_message_is_a_message_or_corrupt(name: str, data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(messages(DECODERS[name])))
    bodies = mangled_document(document, encode=msgspec.msgpack.encode) | mangled_bytes(msgspec.msgpack.encode(document))
    with suppress(Corrupt):
        assert isinstance(decode_body(DECODERS[name], data.draw(bodies)), DECODERS[name].type)


@pytest.mark.parametrize("name", DECODERS)
def test_a_message_that_is_nested_too_deeply_is_corrupt(name: str) -> None:
    document = messages(DECODERS[name])[0]
    body = bytearray(msgspec.msgpack.encode({**document, "unheard_of": 0}))
    body[-1:] = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(Corrupt, match="recursion"):
        decode_body(DECODERS[name], bytes(body))
