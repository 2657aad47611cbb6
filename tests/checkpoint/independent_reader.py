"""A reader written from docs/format.md alone: standard library and numpy, and nothing of Behemoth.

Checks every CRC that the document names and raises ValueError for whatever is not as it says. Small, not fast.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

ELEMENT_BYTES = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1}
"""Those that numpy does not know; they are given as unsigned integers, and `floats` says what numbers they are."""

FEATURES = {"box-shards", "padded-dims", "joint-axes", "joint-dims", "close-chunks"}

NUMBERS = {0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}
"""Of msgpack, as `struct` knows them."""


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRCS = [_crc_of(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRCS[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def newest(root: Path) -> int:
    """The highest step with a checkpoint."""
    steps = [int(file.stem) for file in (root / "commits").iterdir() if is_committed(root, int(file.stem))]
    return max(steps)


def is_committed(root: Path, step: int) -> bool:
    write = unframed((root / f"commits/{step:09d}.json").read_bytes())["write_id"]
    return not (root / f"rejected/{step:09d}-{write}.json").exists()


def read_checkpoint(root: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays by name."""
    commit = unframed((root / f"commits/{step:09d}.json").read_bytes())
    is_known = set(commit["required_features"]) <= FEATURES
    if commit["format"]["major"] != 1 or not is_known or commit["step"] != step:
        raise ValueError(f"commit of step {step}: another format or step")
    folder = root / f"steps/{step:09d}-{commit['write_id']}"
    index = read_index(folder, commit)
    for one in index["metadata"]:
        require(folder / one["key"], one["size_bytes"], one["crc"])
    layout = unpacked(index["layout"])
    names = [array["name"] for array in layout["arrays"]]
    found = {}
    for array, path, crc, summary in zip(
        layout["arrays"], paths_of(names), index["content_crcs"], commit["arrays"], strict=True
    ):
        if summary["name"] != array["name"] or summary["content_crc"] != crc:
            raise ValueError(f"array {array['name']}: commit and index differ")
        found[array["name"]] = read_array(folder / path, array, crc)
    if sum(array.nbytes for array in found.values()) != commit["data_bytes"]:
        raise ValueError("the arrays have another size than the commit says")
    return found


def record_of(row: np.ndarray) -> Any:
    """What `state/run`, a row of `state/ranks` or `state/dcp` holds; None for a blank one."""
    data = row.tobytes()
    (length,) = struct.unpack_from("<Q", data)
    if any(data[8 + length :]):
        raise ValueError("a record with something behind it")
    return unpacked(data[8 : 8 + length]) if length else None


def floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in an array of a dtype that numpy does not know, as float64."""
    if dtype == "bfloat16":
        with np.errstate(invalid="ignore"):
            return (bits.astype("<u4") << 16).view("<f4").astype(np.float64)
    bits = bits.astype(np.int64)
    if dtype == "float8_e8m0fnu":
        return np.where(bits == 255, np.nan, np.exp2(bits - 127.0))
    exponent_bits, mantissa_bits, bias = {"float8_e4m3fn": (4, 3, 7), "float8_e5m2": (5, 2, 15)}[dtype]
    exponents, mantissas = 1 << exponent_bits, 1 << mantissa_bits
    exponent, mantissa = bits >> mantissa_bits & exponents - 1, bits & mantissas - 1
    normal = (1 + mantissa / mantissas) * np.exp2(exponent - float(bias))
    value = np.where(exponent == 0, mantissa / mantissas * 2.0 ** (1 - bias), normal)
    last = exponent == exponents - 1
    if dtype == "float8_e5m2":
        value = np.where(last, np.where(mantissa == 0, np.inf, np.nan), value)
    else:
        value = np.where(last & (mantissa == mantissas - 1), np.nan, value)
    return np.where(bits >> 7 == 1, -value, value)


def read_index(folder: Path, commit: dict[str, Any]) -> dict[str, Any]:
    data = require(folder / "index", commit["index_bytes"], commit["index_crc"])
    index: dict[str, Any] = unpacked(data)
    if index["version"] != 1 or hashlib.sha256(index["layout"]).hexdigest() != commit["layout_digest"]:
        raise ValueError(f"{folder}: index of another version or layout")
    return index


def read_array(folder: Path, array: dict[str, Any], content_crc: int) -> np.ndarray:
    meta = json.loads((folder / "zarr.json").read_bytes())
    if (meta["attributes"]["behemoth"]["name"], meta["data_type"]) != (array["name"], array["dtype"]):
        raise ValueError(f"{folder}: zarr.json of another array")
    shape, inner = meta["shape"], meta["codecs"][0]["configuration"]["chunk_shape"]
    dtype = np.dtype(f"<u{ELEMENT_BYTES[array['dtype']]}" if array["dtype"] in ELEMENT_BYTES else array["dtype"])
    grid = [-(-full // size) for full, size in zip(shape, inner, strict=True)]
    payload_bytes = math.prod(inner) * dtype.itemsize
    stride = payload_bytes + 4
    if payload_bytes >= 1 << 20:
        stride = -(-stride // 4096) * 4096
    outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
    shard = [full // size for full, size in zip(outer, inner, strict=True)]
    shards = read_shards(folder, [count // width for count, width in zip(grid, shard, strict=True)])
    num_slots = math.prod(shard)
    for data in shards.values():
        if len(data) != num_slots * (stride + 16) + 4:
            raise ValueError(f"{folder}: a shard of {len(data)} bytes")
        check_shard_index(data[num_slots * stride :], num_slots, stride, payload_bytes)
    whole = np.empty(shape, dtype)
    crcs = b""
    for number, at in enumerate(itertools.product(*(range(count) for count in grid))):
        data = shards[tuple(i // width for i, width in zip(at, shard, strict=True))]
        slot = 0
        for i, width in zip(at, shard, strict=True):
            slot = slot * width + i % width
        chunk = data[slot * stride : (slot + 1) * stride]
        payload, crc, gap = chunk[:payload_bytes], chunk[payload_bytes : payload_bytes + 4], chunk[payload_bytes + 4 :]
        box = tuple(slice(i * size, min((i + 1) * size, full)) for i, size, full in zip(at, inner, shape, strict=True))
        sizes = [part.stop - part.start for part in box]
        data_bytes = math.prod(sizes) * dtype.itemsize
        if struct.unpack("<I", crc) != (crc32c(payload),) or any(gap) or any(payload[data_bytes:]):
            raise ValueError(f"{folder}: chunk {number} is damaged")
        whole[box] = np.frombuffer(payload[:data_bytes], dtype).reshape(sizes)
        crcs += crc
    if crc32c(crcs) != content_crc:
        raise ValueError(f"{folder}: chunks of another write")
    return whole


def read_shards(folder: Path, counts: list[int]) -> dict[tuple[int, ...], bytes]:
    """By their places in the grid of shards."""
    places = itertools.product(*(range(count) for count in counts))
    return {place: folder.joinpath("c", *map(str, place)).read_bytes() for place in places}


def check_shard_index(data: bytes, num_chunks: int, stride: int, payload_bytes: int) -> None:
    entries = b"".join(struct.pack("<QQ", number * stride, payload_bytes + 4) for number in range(num_chunks))
    if data != entries + struct.pack("<I", crc32c(entries)):
        raise ValueError("the index of a shard is damaged")


def unframed(line: bytes) -> dict[str, Any]:
    match = re.fullmatch(rb'\{"crc32c":"([0-9a-f]{8})","record":(.*)\}\n', line, re.DOTALL)
    if match is None or int(match[1], 16) != crc32c(match[2]):
        raise ValueError("a record is damaged")
    record: dict[str, Any] = json.loads(match[2])
    return record


def require(file: Path, size_bytes: int, crc: int) -> bytes:
    data = file.read_bytes()
    if len(data) != size_bytes or crc32c(data) != crc:
        raise ValueError(f"{file} is damaged")
    return data


def paths_of(names: list[str]) -> list[str]:
    return [path_of(name) + ("%." if any(other.startswith(f"{name}/") for other in names) else "") for name in names]


def path_of(name: str) -> str:
    first, *rest = name.split("/")
    return "/".join([escaped(first, ("index",)), *(escaped(segment, ()) for segment in rest)])


def escaped(segment: str, reserved: tuple[str, ...]) -> str:
    if not segment:
        return "%-"
    text = "".join(letter if re.fullmatch(r"[A-Za-z0-9_.-]", letter) else percent(letter) for letter in segment)
    if segment in (".", "..", "c", "zarr.json", *reserved) or segment.startswith(("__", ".behemoth-tmp-")):
        return percent(segment[0]) + text[1:]
    return text


def percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode())


def unpacked(data: bytes) -> Any:
    """msgpack, as far as indexes and records use it."""
    value, end = unpack_from(data, 0)
    if end != len(data):
        raise ValueError("bytes behind a msgpack value")
    return value


def unpack_from(data: bytes, at: int) -> tuple[Any, int]:
    head, at = data[at], at + 1
    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 256, at
    if head < 0x90:
        return unpack_map(data, at, head & 15)
    if head < 0xA0:
        return unpack_array(data, at, head & 15)
    if head < 0xC0:
        return data[at : at + (head & 31)].decode(), at + (head & 31)
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    form = NUMBERS.get(head)
    if form is not None:
        return struct.unpack_from(f">{form}", data, at)[0], at + struct.calcsize(f">{form}")
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}[head]
    length, at = int.from_bytes(data[at : at + width], "big"), at + width
    if head >= 0xDE:
        return unpack_map(data, at, length)
    if head >= 0xDC:
        return unpack_array(data, at, length)
    raw = data[at : at + length]
    return (raw if head <= 0xC6 else raw.decode()), at + length


def unpack_array(data: bytes, at: int, length: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(length):
        value, at = unpack_from(data, at)
        values.append(value)
    return values, at


def unpack_map(data: bytes, at: int, length: int) -> tuple[dict[Any, Any], int]:
    values, at = unpack_array(data, at, 2 * length)
    return dict(zip(values[::2], values[1::2], strict=True)), at
