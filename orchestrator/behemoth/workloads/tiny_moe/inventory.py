"""Which weights the model has: name, logical shape, where it is held and in which type it is stored. No torch.

The names are the checkpoint's. Shapes: V vocabulary, d width, E experts, F expert width, H heads, K key-value heads,
h head width. Two weights are not Llama 4's: `output.bias` [257], whose size no number of ranks divides, and
`output.scale` [1], of which most ranks hold nothing; flat shards meet uneven and empty pieces through them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from behemoth.workloads.corpus import VOCABULARY
from behemoth.workloads.tiny_moe.config import Config


class Held(Enum):
    """DENSE weights are the same on all ranks; EXPERT weights are split over ep by their first dim."""

    DENSE = "dense"
    EXPERT = "expert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """`site` is the index of a float8 weight among those of its kind, None for one stored in bfloat16.

    `spread` is the standard deviation at the start; `level` is the value around which it lies.
    """

    name: str
    shape: tuple[int, ...]
    held: Held
    site: int | None = None
    spread: float = 0.0
    level: float = 0.0

    @property
    def decays(self) -> bool:
        return len(self.shape) > 1


def inventory(config: Config) -> tuple[Weight, ...]:
    """Weights in a fixed order, which is also the order of the optimizer's buckets."""
    weights: list[Weight] = []
    for layer in range(config.layers):
        weights += _layer(config, layer)
    d = config.width
    return (
        *weights,
        Weight(name="embedding", shape=(VOCABULARY, d), held=Held.DENSE, spread=0.5),
        Weight(name="norm", shape=(d,), held=Held.DENSE, level=1.0),
        Weight(name="output.weight", shape=(d, VOCABULARY), held=Held.DENSE, spread=d**-0.5),
        Weight(name="output.bias", shape=(VOCABULARY,), held=Held.DENSE, spread=1e-2),
        Weight(name="output.scale", shape=(1,), held=Held.DENSE, level=1.0),
    )


def _layer(config: Config, layer: int) -> list[Weight]:
    d, f, prefix = config.width, config.expert_width, f"layers.{layer}"
    packed = (config.heads + 2 * config.kv_heads) * config.head_width
    dense = {
        f"{prefix}.attention.wqkv": (d, packed),
        f"{prefix}.attention.wo": (d, d),
        f"{prefix}.shared.w13": (d, 2 * f),
        f"{prefix}.shared.w2": (f, d),
    }
    experts = {f"{prefix}.experts.w13": (config.experts, d, 2 * f), f"{prefix}.experts.w2": (config.experts, f, d)}
    return [
        *(_float8(name, shape, Held.DENSE, 4 * layer + i) for i, (name, shape) in enumerate(dense.items())),
        *(_float8(name, shape, Held.EXPERT, 2 * layer + i) for i, (name, shape) in enumerate(experts.items())),
        Weight(name=f"{prefix}.router", shape=(d, config.experts), held=Held.DENSE, spread=d**-0.5),
        Weight(name=f"{prefix}.attention_norm", shape=(d,), held=Held.DENSE, level=1.0),
        Weight(name=f"{prefix}.mlp_norm", shape=(d,), held=Held.DENSE, level=1.0),
    ]


def _float8(name: str, shape: tuple[int, ...], held: Held, site: int) -> Weight:
    return Weight(name=name, shape=shape, held=held, site=site, spread=math.sqrt(1.0 / shape[-2]))
