"""The tensors of a model: names, shapes, and which dims are cut over which mesh axis.

From these follow what a mesh must divide and what a rank holds. Inventories of published models ship as `data/*.json`;
a user's own file has the same format. Bytes, of ranks and of a checkpoint's arrays, are the business of
`behemoth.checkpoint`; this module knows parameters, and buffers of the types that they have.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_json, told
from behemoth.base.errors import Invalid
from behemoth.spec.field import About, Choice, Text, require_ranges
from behemoth.spec.mesh import Axis
from behemoth.spec.pipeline import EVEN, Pipeline

MODEL_NAMES = ("tiny-moe", "scout", "maverick", "behemoth-ref")
MAX_INVENTORY_BYTES = 16 << 20
_BUFFER = r"bool|u?int(8|16|32|64)|b?float16|float(32|64)|float8_e(4m3fn|5m2|8m0fnu)|complex(64|128)"
"""Element types of buffers, by the names that arrays of a checkpoint have for them."""

_RULE = re.compile(
    r"(tp|etp|ep)([0-7])(?:_packed([1-9]\d?|[1-9]\d{0,5}(?::[1-9]\d{0,5}){1,7})|(_padded)([1-9]\d{0,5})?)?", re.A
)
"""The rule of one dim: axis, dim, parts, whether it is padded and to what."""

Stage = Literal["first", "last", "layer"]
Form = TypeVar("Form")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model whose inventory ships with the package."""

    ref: Annotated[str, About(doc="A model that Behemoth knows by name.", kind=Choice(names=MODEL_NAMES))]

    def __post_init__(self) -> None:
        require_ranges(self, name="model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model whose inventory is a file; whoever opens the file calls `behemoth.spec.run.require_fit`."""

    inventory: Annotated[
        str,
        About(
            doc="Path of a file with the tensors of your own model: in the format of `docs/spec.md`, a config.json of "
            "Llama 4, a model.safetensors.index.json with its files beside it, or one safetensors file.",
            kind=Text(what="a path", pattern=r"[^\0]+"),
        ),
    ]

    def __post_init__(self) -> None:
        require_ranges(self, name="model")


Model: TypeAlias = NamedModel | ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`dim` is split evenly over `axis`, each of its parts (gate|up, q|k|v) by itself. `packed` has their sizes,
    relative to each other: (1, 1) for two halves, (4, 1, 1) for the fused q, k and v of four heads for each key.

    With `padded_to` the axis need not divide it: programs pad it to a multiple of so many rows for each rank
    (Megatron's `make_vocab_size_divisible_by`)."""

    dim: int
    axis: Axis
    packed: tuple[int, ...] = (1,)
    padded_to: int | None = None

    def part_sizes(self, size: int) -> tuple[int, ...]:
        """Sizes of the parts of a dim of `size`, which must be a multiple of the sum of `packed`."""
        return tuple(size // sum(self.packed) * part for part in self.packed)

    def rows_of_rank(self, size: int, num_ranks: int) -> int:
        """Most rows of a dim of `size` that one rank holds: a full share of the padded dim, since padding is at its
        end."""
        rows = -(-size // num_ranks)
        return rows if self.padded_to is None else -(-rows // self.padded_to) * self.padded_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    cuts: tuple[Cut, ...]
    stage: Stage
    layer: int | None
    """Its number among the layers that are spread over the pipeline; None outside of them."""
    buffer: str | None = None
    """The element type of a buffer, which every replica holds and no optimizer knows; None for a parameter, whose types
    are the recipe's."""

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def is_expert(self) -> bool:
        return any(cut.axis in ("ep", "etp") for cut in self.cuts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All tensors of one model; `tensors` is empty where they come from the program and only `num_experts` is known."""

    num_experts: int
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors without buffers."""
        return tuple(tensor for tensor in self.tensors if tensor.buffer is None)

    @property
    def num_params(self) -> int:
        return sum(tensor.num_params for tensor in self.parameters)

    @property
    def num_layers(self) -> int:
        """Layers spread over the pipeline; 0 where no tensors are known."""
        return max((tensor.layer + 1 for tensor in self.tensors if tensor.layer is not None), default=0)


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor, or one per layer where `layers` gives start, stop and step and the name has a `{}` for the number."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]], msgspec.Meta(max_length=8)]
    shard: Annotated[str, msgspec.Meta(max_length=100)]
    layers: tuple[int, int, int] | None = None
    stage: Stage | None = None
    buffer: Annotated[str, msgspec.Meta(pattern=f"^({_BUFFER})$")] | None = None


def named_inventory(name: str) -> Inventory:
    """The inventory of a model that ships with the package; read once. Raises Invalid for an unknown name."""
    if name not in MODEL_NAMES:
        raise Invalid(f"model: expected one of {', '.join(MODEL_NAMES)}, got {name!r}", code="unknown-model")
    return _shipped(name)


def decode_inventory(data: bytes, *, source: str) -> Inventory:
    """Read an inventory file. Raises Invalid that names `source` and the place of what is wrong."""
    file = decode_model_json(data, _File, what="a model inventory", source=source)
    if file.format != 1:
        hint = "this file needs a newer behemoth"
        raise Invalid(f"{source}: expected format 1, got {file.format}", hint=hint, code="inventory-format")
    return inventory_of(file.tensors, num_experts=file.experts, source=source)


def encode_inventory(entries: Sequence[TensorEntry], *, num_experts: int, source: str) -> bytes:
    """An inventory file, as `decode_inventory` reads it. Raises Invalid that names `source` for entries that it would
    refuse."""
    data = msgspec.json.format(msgspec.json.encode(_File(format=1, experts=num_experts, tensors=list(entries))))
    decode_inventory(data, source=source)
    return data


def decode_model_json(data: bytes, form: type[Form], *, what: str, source: str) -> Form:
    """A JSON file about a model. Raises Invalid that names `source` for one that is too large or no `what`."""
    if len(data) > MAX_INVENTORY_BYTES:
        expected = f"expected at most {MAX_INVENTORY_BYTES} bytes"
        raise Invalid(f"{source}: {expected}, got {len(data)}", code="inventory-size")
    try:
        return decode_json(data, form)
    except UNDECODABLE as error:
        message = f"{source}: expected {what}, got: {told(error)}"
        raise Invalid(message, code="inventory-format") from error


def inventory_of(entries: Iterable[TensorEntry], *, num_experts: int, source: str) -> Inventory:
    """Raises Invalid that names `source` for an entry that cannot be, and for a tensor that comes twice."""
    tensors = tuple(tensor for entry in entries for tensor in _tensors(entry, source))
    twice = next((name for name, num in Counter(tensor.name for tensor in tensors).items() if num > 1), None)
    if twice is not None:
        raise Invalid(f"{source}: expected each tensor once, got {twice} again", code="inventory-format")
    return Inventory(num_experts=num_experts, tensors=tensors)


def stage_of(tensor: Tensor, num_layers: int, num_stages: int, pipeline: Pipeline = EVEN) -> int:
    """The pipeline stage that holds a tensor."""
    match tensor.stage:
        case "first":
            return 0
        case "last":
            return num_stages - 1
        case "layer":
            assert tensor.layer is not None
            return pipeline.stage_of_layer(tensor.layer, num_layers, num_stages)


def is_buffer_dtype(name: str) -> bool:
    """Whether a buffer may have it."""
    return re.fullmatch(_BUFFER, name) is not None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: int
    experts: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    tensors: Annotated[list[TensorEntry], msgspec.Meta(max_length=100_000)]
    about: str = ""


@functools.cache
def _shipped(name: str) -> Inventory:
    file = resources.files("behemoth.spec").joinpath("data", f"{name}.json")
    return decode_inventory(file.read_bytes(), source=f"model {name}")


def _tensors(entry: TensorEntry, source: str) -> Iterator[Tensor]:
    shape, cuts = tuple(entry.shape), _cuts(entry, source)
    if entry.layers is None:
        stage = entry.stage or "first"
        yield Tensor(name=entry.name, shape=shape, cuts=cuts, stage=stage, layer=None, buffer=entry.buffer)
        return
    start, stop, step = entry.layers
    if not (0 <= start < stop <= 10_000 and step >= 1 and entry.name.count("{}") == 1):
        expected = "expected layers as [start, stop, step] and one {} in the name"
        raise Invalid(f"{source}: {entry.name}: {expected}, got {list(entry.layers)}", code="inventory-format")
    for number in range(start, stop, step):
        name, stage = entry.name.replace("{}", str(number)), entry.stage or "layer"
        layer = number if stage == "layer" else None
        yield Tensor(name=name, shape=shape, cuts=cuts, stage=stage, layer=layer, buffer=entry.buffer)


def _cuts(entry: TensorEntry, source: str) -> tuple[Cut, ...]:
    """`rep` is whole on every rank; `ep0,etp2_packed2` cuts dim 0 over ep, and both halves of dim 2 over etp;
    `tp0_packed4:1:1` cuts three parts of which the first is four times as large (fused q, k and v); `tp0_padded128`
    cuts a dim that programs pad to 128 rows for each rank, `tp0_padded` one that need not divide."""
    if entry.shard == "rep":
        return ()
    return tuple(_cut(rule, entry, source) for rule in entry.shard.split(","))


def _cut(rule: str, entry: TensorEntry, source: str) -> Cut:
    match = _RULE.fullmatch(rule)
    axes: dict[str, Axis] = {"tp": "tp", "etp": "etp", "ep": "ep"}
    packed = _packed(match[3]) if match is not None and match[3] else (1,)
    if match is None or int(match[2]) >= len(entry.shape) or entry.shape[int(match[2])] % sum(packed):
        expected = (
            "expected a shard rule such as rep, tp0_padded128, tp0_packed4:1:1 or ep0,etp2_packed2 that fits the shape"
        )
        raise Invalid(f"{source}: {entry.name}: {expected} {entry.shape}, got {entry.shard!r}", code="inventory-format")
    padded_to = int(match[5] or 1) if match[4] else None
    return Cut(dim=int(match[2]), axis=axes[match[1]], packed=packed, padded_to=padded_to)


def _packed(parts: str) -> tuple[int, ...]:
    """`2` is two parts of one size, `4:1:1` gives the sizes relative to each other."""
    sizes = tuple(int(part) for part in parts.split(":"))
    return sizes if len(sizes) > 1 else (1,) * sizes[0]
