"""Experts that are tensors of their own (Mixtral, DeepSeek, Qwen) as the stacks that checkpoints hold.

A mesh spreads experts by cutting dim 0 of a stack over ep, so `X.experts.0.Y`, `X.experts.1.Y` and so on become one
`X.experts.Y` of [E, ...]. Pure. Neighbour: `tensor_names`, whose rules hold for all other tensors, also for the stacks
of the Llama 4 family.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from behemoth.spec.model import TensorEntry
from behemoth.spec.tensor_names import entry_of

_Shape = tuple[int, ...]
_EXPERT = re.compile(r"((?:.+\.)?experts)\.(\d{1,5})\.(.+)")
_CUTS = (
    (re.compile(r"(gate_proj|up_proj|w1|w3)\.(weight|bias)"), "ep0,etp1"),
    (re.compile(r"(down_proj|w2)\.weight"), "ep0,etp2"),
)
"""What follows the number, and the rule of its stack [E, out, in]; what none fits is cut over ep alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStacks:
    """`entries` of the stacks, and the `members`, names of the tensors that they are made of."""

    num_experts: int
    entries: tuple[TensorEntry, ...]
    members: frozenset[str]


NONE = ExpertStacks(num_experts=0, entries=(), members=frozenset())


def expert_stacks(shapes: Mapping[str, _Shape]) -> ExpertStacks:
    """In order of name. NONE when layers have different numbers of experts, since no ep could be told to divide them.
    Experts of which one is missing or has another shape, and those whose stack's name is taken, are no members."""
    groups: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in shapes:
        if (match := _EXPERT.fullmatch(name)) and str(int(match[2])) == match[2]:
            groups[match[1], match[3]][int(match[2])] = name
    alike = {
        (above, below): of
        for (above, below), of in sorted(groups.items())
        if f"{above}.{below}" not in shapes and _are_alike(of, shapes)
    }
    if len({len(of) for of in alike.values()}) != 1:
        return NONE
    return ExpertStacks(
        num_experts=len(next(iter(alike.values()))),
        entries=tuple(_entry(above, below, (len(of), *shapes[of[0]])) for (above, below), of in alike.items()),
        members=frozenset(name for of in alike.values() for name in of.values()),
    )


def _are_alike(of: Mapping[int, str], shapes: Mapping[str, _Shape]) -> bool:
    """Numbered from 0 without a gap, all of one shape."""
    return sorted(of) == list(range(len(of))) and len({shapes[name] for name in of.values()}) == 1


def _entry(above: str, below: str, shape: _Shape) -> TensorEntry:
    """Layers and stage as of any other tensor."""
    rule = next((rule for name, rule in _CUTS if name.fullmatch(below)), "ep0")
    return msgspec.structs.replace(entry_of(f"{above}.{below}", shape), shard=rule)
