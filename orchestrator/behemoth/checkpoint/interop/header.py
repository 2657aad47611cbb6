"""The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes. No I/O.

A header is accepted only if every byte behind it belongs to exactly one tensor, as the format demands
(github.com/huggingface/safetensors, README, "Format"): no overlaps, and no bytes between. Neighbours: `export` writes
headers, `foreign` reads them; `spec.safetensors_header` only takes shapes from them, for plans, and accepts files that
are cut off.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from behemoth.base.decoding import decode_json, told
from behemoth.base.errors import BehemothError, Corrupt, Invalid
from behemoth.checkpoint.layout import DTYPES, MAX_DIMS
from behemoth.spec.safetensors_header import LENGTH_BYTES, METADATA

ALIGNMENT_BYTES = 8
MIN_HEADER_BYTES = len(b"{}")
MAX_HEADER_BYTES = 25_000_000
"""Room for some 200,000 tensors. The safetensors library stops at 100 MB; parsed, that would take gigabytes."""

DTYPE_NAMES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
}
"""Our dtypes by their names in safetensors, which has none for complex128."""
_DTYPES = {theirs: ours for ours, theirs in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTensor:
    """One tensor of a file; `offset_bytes` counts from the first byte behind the head."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def encode_header(tensors: Sequence[HeadTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with blanks so that data begins at a multiple of eight. Raises Invalid for a dtype that
    the format does not know, for the one name that is none there, and for a head that nobody would read."""
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    if any(tensor.name == METADATA for tensor in tensors):
        hint = "rename it by a map"
        raise Invalid(f"tensor {METADATA!r}: expected another name, got that of a file's metadata", hint=hint)
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _name_of(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [tensor.offset_bytes, tensor.offset_bytes + tensor.num_bytes],
        }
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % ALIGNMENT_BYTES)
    if len(body) > MAX_HEADER_BYTES:
        raise Invalid(
            f"safetensors header of {len(tensors)} tensors: expected at most {MAX_HEADER_BYTES} bytes, got {len(body)}",
            hint="a smaller --max-file-size puts fewer tensors into a file",
            code="safetensors-header",
        )
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def decode_length(data: bytes, *, source: str, file_bytes: int) -> int:
    """Bytes of the JSON, from a file's first eight. Raises Corrupt when the file has no room for it."""
    if file_bytes < LENGTH_BYTES + MIN_HEADER_BYTES:
        raise _damaged(source, f"expected at least {LENGTH_BYTES + MIN_HEADER_BYTES} bytes, got {file_bytes}")
    length = int.from_bytes(data, "little")
    if (
        len(data) != LENGTH_BYTES
        or not MIN_HEADER_BYTES <= length <= MAX_HEADER_BYTES
        or length > file_bytes - LENGTH_BYTES
    ):
        most = min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES)
        raise _damaged(
            source,
            f"expected a header of {MIN_HEADER_BYTES} .. {most} bytes, got {length} in a file of {file_bytes} bytes",
        )
    return length


def decode_header(body: bytes, *, source: str, data_bytes: int) -> tuple[HeadTensor, ...]:
    """The tensors, in order of their bytes, of a file with `data_bytes` behind its head.

    Raises Corrupt for what is no head, for duplicate names, and for offsets outside of the data, overlapping or with
    holes between; Invalid for dtypes and shapes that we do not know.
    """
    entries = _entries(body, source)
    tensors = sorted((_tensor(name, entry, source) for name, entry in entries), key=_place)
    end = 0
    for tensor in tensors:
        if tensor.offset_bytes != end:
            what = "overlaps the tensor before it" if tensor.offset_bytes < end else "leaves bytes of nobody before it"
            raise _damaged(
                source, f"tensor {tensor.name!r}: expected to begin at byte {end}, got {tensor.offset_bytes}: it {what}"
            )
        end += tensor.num_bytes
    if end != data_bytes:
        raise _damaged(source, f"expected {end} bytes of tensors behind the header, got {data_bytes}")
    return tuple(tensors)


class _Head(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(name=METADATA, default_factory=dict)


def decode_head_metadata(body: bytes) -> Mapping[str, str]:
    """What the writer of a file put beside its tensors, from a body that `decode_header` took."""
    return decode_json(body, _Head).metadata


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: Annotated[str, msgspec.Meta(max_length=32)]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]], msgspec.Meta(max_length=MAX_DIMS)]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


def _place(tensor: HeadTensor) -> tuple[int, int]:
    return tensor.offset_bytes, tensor.num_bytes


def _name_of(tensor: HeadTensor) -> str:
    if tensor.dtype not in DTYPE_NAMES:
        raise Invalid(
            f"tensor {tensor.name!r}: expected a dtype that safetensors knows, got {tensor.dtype}",
            hint="leave it out with --select or a map's drop",
            code="safetensors-dtype",
        )
    return DTYPE_NAMES[tensor.dtype]


def _entries(body: bytes, source: str) -> list[tuple[str, _Entry]]:
    """Typed first, because that bounds what a hostile head can grow to; then again for names that are there twice."""
    try:
        typed = decode_json(body, dict[str, msgspec.Raw])
        metadata = typed.pop(METADATA, None)
        if metadata is not None:
            decode_json(metadata, dict[str, str])
        entries = [(name, decode_json(raw, _Entry)) for name, raw in typed.items()]
        pairs = json.loads(body, object_pairs_hook=list)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _damaged(source, f"expected a safetensors header, got: {told(error)}") from error
    twice = next((name for name, num in Counter(name for name, _ in pairs).items() if num > 1), None)
    if twice is not None:
        raise _damaged(source, f"expected each name once, got {twice!r} again")
    return entries


def _tensor(name: str, entry: _Entry, source: str) -> HeadTensor:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise Invalid(
            f"{source}: tensor {name!r}: expected one of {', '.join(_DTYPES)}, got dtype {entry.dtype!r}",
            code="safetensors-dtype",
        )
    tensor = HeadTensor(name=name, dtype=dtype, shape=tuple(entry.shape), offset_bytes=entry.data_offsets[0])
    got = entry.data_offsets[1] - entry.data_offsets[0]
    if got != tensor.num_bytes:
        raise _damaged(
            source,
            f"tensor {name!r}: expected {tensor.num_bytes} bytes for {dtype}{list(tensor.shape)}, got {got}",
        )
    return tensor


def _damaged(source: str, what: str) -> BehemothError:
    return Corrupt(f"{source}: {what}", hint="copy the file again: it is cut off or damaged", code="safetensors-header")
