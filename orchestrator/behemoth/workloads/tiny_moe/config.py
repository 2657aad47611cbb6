"""The toy's sizes and how `workload.args` changes them. Values only; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

HISTORY = 16
"""Steps of an amax history; its first slot is the running maximum of the present step."""

COUNTS = (
    "layers",
    "width",
    "heads",
    "kv_heads",
    "experts",
    "expert_width",
    "nope_every",
    "attention_chunk",
    "sequence",
    "batch",
    "warmup_steps",
)
"""Fields that must be 1 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Each field may be given in `workload.args`; the defaults make a step of some 50 ms on two cores."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    experts: int = 16
    expert_width: int = 64
    nope_every: int = 4
    """Every n-th layer attends without positions, over the whole sequence (Llama 4's iRoPE)."""
    attention_chunk: int = 32
    """Layers with positions attend within chunks of so many tokens."""
    sequence: int = 64
    batch: int = 16
    """Samples of one step over all ranks."""
    learning_rate: float = 3e-3
    warmup_steps: int = 10
    weight_decay: float = 0.1
    router_noise: float = 0.02
    seed: int = 7

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"workload.args.{name}: expected a number >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "router_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"workload.args.{name}: expected a finite number >= 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"workload.args.seed: expected 0 to {(1 << 32) - 1}, got {self.seed}")
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                "workload.args: expected width to be a multiple of 2 x heads and heads one of kv_heads, "
                f"got width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def has_positions(self, layer: int) -> bool:
        return (layer + 1) % self.nope_every != 0


def config_from(args: Mapping[str, object]) -> Config:
    """Raises ValueError for an unknown name or a value of the wrong type: nothing is accepted and ignored."""
    known = {field.name: type(field.default) for field in fields(Config)}
    values: dict[str, int | float] = {}
    for name, value in args.items():
        if name not in known:
            raise ValueError(f"workload.args.{name}: expected one of {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"workload.args.{name}: expected a number, got {value!r}")
        if known[name] is int and not isinstance(value, int):
            raise ValueError(f"workload.args.{name}: expected a whole number, got {value!r}")
        values[name] = value
    return Config(**values)  # type: ignore[arg-type]  # checked above, field by field
