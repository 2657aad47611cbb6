"""The inventory file of a torch module, so that `behemoth plan` and the mesh checks know any model.

Only names, shapes and types are asked for, so a module on the meta device will do: no weight needs memory. torch is not
imported here. Neighbours: `behemoth.spec.model` (the format), `behemoth.spec.tensor_names` (the Llama 4 family's
rules).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import msgspec

from behemoth.base.errors import Invalid
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.spec.model import Stage, TensorEntry, encode_inventory, is_buffer_dtype
from behemoth.spec.tensor_names import entry_of


class _Array(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> object: ...


class Module(Protocol):
    """What is used of a torch.nn.Module."""

    def named_parameters(self) -> Iterable[tuple[str, _Array]]: ...

    def named_buffers(self, *, remove_duplicate: bool) -> Iterable[tuple[str, _Array]]: ...

    def state_dict(self) -> Mapping[str, object]: ...


def module_inventory(
    module: Module,
    *,
    shard: Mapping[str, str] | None = None,
    layers: str | None = None,
    last: Sequence[str] = (),
    experts: int = 0,
) -> bytes:
    """JSON for `spec.model.inventory` of all parameters and persistent buffers of a module; tied ones count once.

    These are the tensors of its `state_dict`: a buffer that was registered with `persistent=False` is not among them,
    nor is extra state. Buffers keep their own types, are whole on every replica, and have no optimizer state.

    `shard` gives rules such as `tp0` or `ep0,etp2_packed2` for patterns of names, the first that matches; others have
    the rules of the Llama 4 family's names, else they are whole on every rank. `layers` is how layers that are spread
    over the pipeline are called, with `{}` for their number (`transformer.h.{}`; by default as in the Llama 4 family);
    what `last` names stands on the last stage, everything else on the first. `experts`: how many the model has. Raises
    Invalid for patterns that name nothing, rules that do not fit, a module without parameters, tensors without a shape
    or without elements, and buffers of a type that no checkpoint keeps.
    """
    shapes = {name: _shape_of(name, "parameter", one) for name, one in module.named_parameters()}
    if not shapes:
        raise Invalid("module: expected parameters, got none", code="inventory-format")
    buffers = _saved_buffers(module)
    shapes |= {name: _shape_of(name, "buffer", one) for name, one in buffers.items()}
    dtypes = {name: _dtype_of(name, one) for name, one in buffers.items()}
    _check_used("shard", shard or {}, shapes)
    _check_used("last", last, shapes)
    template = None if layers is None else _Layers(layers)
    if template is not None and not any(template.split(name) for name in shapes):
        raise Invalid(f"layers: expected the beginning of some tensor's name, got {layers!r}", code="arrays-listed")
    entries = [_entry(name, shape, shard or {}, template, last, dtypes.get(name)) for name, shape in shapes.items()]
    return encode_inventory(list(_gathered(entries)), num_experts=experts, source="module")


@dataclass(frozen=True, slots=True)
class _Layers:
    """What the names of layers begin with."""

    template: str

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise Invalid(f"layers: expected one {{}} for the number, got {self.template!r}", code="arrays-listed")

    def split(self, name: str) -> tuple[str, int] | None:
        """For a tensor of a layer its name with `{}` in place of the number, and the number; else None."""
        before, after = self.template.split("{}")
        match = re.fullmatch(rf"{re.escape(before)}(\d{{1,4}})({re.escape(after)}\..+)", name)
        return None if match is None else (f"{before}{{}}{match[2]}", int(match[1]))


def _saved_buffers(module: Module) -> dict[str, _Array]:
    """The buffers in the state_dict. One with several names appears under the first that is in the state_dict."""
    saved = module.state_dict().keys()
    found: dict[int, tuple[str, _Array]] = {}
    for name, one in module.named_buffers(remove_duplicate=False):
        if name in saved:
            found.setdefault(id(one), (name, one))
    return dict(found.values())


def _shape_of(name: str, what: str, array: _Array) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in array.shape)
    except RuntimeError as error:  # what torch says of the parameters and buffers of lazy modules
        raise Invalid(
            f"module: {name}: expected a {what} with a shape, got one that is not initialized",
            hint="call the module's forward once, or name the sizes when it is made",
            code="inventory-format",
        ) from error
    if 0 in shape:
        raise Invalid(
            f"module: {name}: expected a {what} with elements, got shape {shape}",
            hint="there is nothing to save of it: leave it out of the module that is given",
            code="inventory-format",
        )
    return shape


def _dtype_of(name: str, array: _Array) -> str:
    dtype = str(array.dtype).removeprefix("torch.")
    if not is_buffer_dtype(dtype):
        raise Invalid(
            f"module: {name}: expected a buffer of a type that checkpoints keep, got {dtype}",
            hint="register it with persistent=False, or as a view of integers",
            code="inventory-format",
        )
    return dtype


def _entry(
    name: str,
    shape: tuple[int, ...],
    shard: Mapping[str, str],
    layers: _Layers | None,
    last: Sequence[str],
    buffer: str | None,
) -> TensorEntry:
    known = entry_of(name, shape)
    rule = next((rule for pattern, rule in shard.items() if fnmatchcase(name, pattern)), known.shard)
    if layers is None:
        template, numbers = known.name, known.layers
    else:
        split = layers.split(name)
        template, numbers = (name, None) if split is None else (split[0], (split[1], split[1] + 1, 1))
    is_last = any(fnmatchcase(name, pattern) for pattern in last)
    stage: Stage | None = "last" if is_last else None if numbers is not None else known.stage or "first"
    return TensorEntry(name=template, shape=list(shape), shard=rule, layers=numbers, stage=stage, buffer=buffer)


def _gathered(entries: Sequence[TensorEntry]) -> Iterator[TensorEntry]:
    """Entries with those of equal layers merged into one where the layer numbers form an arithmetic progression."""
    alike: dict[tuple[object, ...], list[TensorEntry]] = {}
    for entry in entries:
        alike.setdefault((entry.name, tuple(entry.shape), entry.shard, entry.stage, entry.buffer), []).append(entry)
    for same in alike.values():
        numbers = sorted(entry.layers[0] for entry in same if entry.layers is not None)
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        if numbers and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
            yield msgspec.structs.replace(same[0], layers=(numbers[0], numbers[-1] + 1, step))
        else:
            yield from same


def _check_used(what: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    known = list(names)
    if unused := NamePatterns(patterns).unused(known):
        raise Invalid(
            f"{what}: expected patterns of the module's tensors, got {unused[:3]}",
            hint=f"they are called such as {known[0]!r}",
            code="arrays-listed",
        )
