"""The inventory file of a torch module, so that `behemoth plan` and the mesh checks know a model of one's own.

Only names and shapes are asked for, so a module on the meta device does: no weight needs memory. torch is not imported
here. Neighbours: `behemoth.spec.model` (the format), `behemoth.spec.tensor_names` (the Llama 4 family's rules).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from behemoth.base.errors import Invalid
from behemoth.spec.model import Stage, TensorEntry, encode_inventory
from behemoth.spec.tensor_names import entry_of


class _Parameter(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


class Module(Protocol):
    """What is used of a torch.nn.Module."""

    def named_parameters(self) -> Iterable[tuple[str, _Parameter]]: ...


def module_inventory(
    module: Module,
    *,
    shard: Mapping[str, str] | None = None,
    layers: str | None = None,
    last: Sequence[str] = (),
    experts: int = 0,
) -> bytes:
    """JSON for `spec.model.inventory` of all parameters of a module; tied ones count once.

    `shard` gives rules such as `tp0` or `ep0,etp2_packed2` for patterns of names, the first that matches; others have
    the rules of the Llama 4 family's names, else they are whole on every rank. `layers` is how layers that are spread
    over the pipeline are called, with `{}` for their number (`transformer.h.{}`; by default as in the Llama 4 family);
    what `last` names stands on the last stage, everything else on the first. `experts`: how many the model has. Raises
    Invalid for patterns that name nothing, rules that do not fit, a module without parameters, and parameters without
    a shape or without elements.
    """
    shapes = {name: _shape_of(name, one) for name, one in module.named_parameters()}
    if not shapes:
        raise Invalid("module: expected parameters, got none", code="inventory-format")
    _check_used("shard", shard or {}, shapes)
    _check_used("last", last, shapes)
    template = None if layers is None else _Layers(layers)
    if template is not None and not any(template.split(name) for name in shapes):
        raise Invalid(f"layers: expected what some parameter's name begins with, got {layers!r}", code="arrays-listed")
    entries = [_entry(name, shape, shard or {}, template, last) for name, shape in shapes.items()]
    return encode_inventory(list(_gathered(entries)), num_experts=experts, source="module")


@dataclass(frozen=True, slots=True)
class _Layers:
    """What the names of layers begin with."""

    template: str

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise Invalid(f"layers: expected one {{}} for the number, got {self.template!r}", code="arrays-listed")

    def split(self, name: str) -> tuple[str, int] | None:
        """The name with `{}`, and the number, of what belongs to a layer."""
        before, after = self.template.split("{}")
        match = re.fullmatch(rf"{re.escape(before)}(\d{{1,4}})({re.escape(after)}\..+)", name)
        return None if match is None else (f"{before}{{}}{match[2]}", int(match[1]))


def _shape_of(name: str, parameter: _Parameter) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in parameter.shape)
    except RuntimeError as error:  # what torch says of the parameters of lazy modules
        raise Invalid(
            f"module: {name}: expected a parameter with a shape, got one that is not initialized",
            hint="call the module's forward once, or name the sizes when it is made",
            code="inventory-format",
        ) from error
    if 0 in shape:
        raise Invalid(
            f"module: {name}: expected a parameter with elements, got shape {shape}",
            hint="there is nothing to save of it: leave it out of the module that is given",
            code="inventory-format",
        )
    return shape


def _entry(
    name: str, shape: tuple[int, ...], shard: Mapping[str, str], layers: _Layers | None, last: Sequence[str]
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
    return TensorEntry(name=template, shape=list(shape), shard=rule, layers=numbers, stage=stage)


def _gathered(entries: Sequence[TensorEntry]) -> Iterator[TensorEntry]:
    """Layers that are alike become one entry where their numbers have an even step."""
    alike: dict[tuple[object, ...], list[TensorEntry]] = {}
    for entry in entries:
        alike.setdefault((entry.name, tuple(entry.shape), entry.shard, entry.stage), []).append(entry)
    for same in alike.values():
        numbers = sorted(entry.layers[0] for entry in same if entry.layers is not None)
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        if numbers and numbers == list(range(numbers[0], numbers[-1] + 1, step)):
            one = same[0]
            every = (numbers[0], numbers[-1] + 1, step)
            yield TensorEntry(name=one.name, shape=one.shape, shard=one.shard, layers=every, stage=one.stage)
        else:
            yield from same


def _check_used(what: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    known = list(names)
    unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in known)]
    if unused:
        raise Invalid(
            f"{what}: expected patterns of the module's parameters, got {unused[:3]}",
            hint=f"parameters are called such as {known[0]!r}",
            code="arrays-listed",
        )
