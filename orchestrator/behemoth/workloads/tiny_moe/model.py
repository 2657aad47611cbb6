"""A decoder after Llama 4's published design, at toy width: the forward pass as functions of named weights.

Source: Meta's llama-models repository, models/llama4 (model.py, moe.py). Pre-norm RMSNorm; grouped-query attention,
in most layers with rotary positions, normalised queries and keys and attention within chunks, in every n-th without
positions, over the whole sequence, with queries scaled up slowly by position; a shared expert and, of the routed
ones, the best for each token, weighted by the sigmoid of its score. Plain matrix products and softmax, because fused
attention is not deterministic on GPUs. The neighbour `experts` carries tokens to the routed experts.

Suffixes: B samples, S tokens, T = B*S, d width, H heads, K key-value heads, G = H/K, h head width, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from behemoth.workloads.corpus import VOCABULARY
from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.experts import Router
from behemoth.workloads.tiny_moe.fp8 import Scales, cast_input

ROPE_THETA = 500_000.0
EPSILON = 1e-5
TEMPERATURE_FLOOR, TEMPERATURE_SCALE = 16, 0.1
"""Positions per level and slope of the query scaling in layers without positions (Llama 4 has 8192 and 0.1)."""


class Decoder:
    """`weights` are the working copies; `inputs` the scales of the dense operands, four sites a layer."""

    def __init__(self, config: Config, weights: Mapping[str, Tensor], inputs: Scales, router: Router) -> None:
        self._config = config
        self._weights = weights
        self._inputs = inputs
        self._router = router
        device = weights["norm"].device
        self._rope_cos, self._rope_sin = _rotations(config, device)
        self._chunked, self._causal = _masks(config, device)
        position = torch.arange(config.sequence, device=device)
        self._temperature_s1 = (torch.floor((position + 1) / TEMPERATURE_FLOOR) + 1).log()[
            :, None
        ] * TEMPERATURE_SCALE + 1

    def loss_sum(self, tokens_bs: Tensor, targets_bs: Tensor) -> Tensor:
        """Sum over all tokens of the cross-entropy in nats; adds to the histories of maxima."""
        x_td = functional.embedding(tokens_bs.reshape(-1), self._weights["embedding"])
        for layer in range(self._config.layers):
            x_td = x_td + self._attention(layer, x_td)
            x_td = x_td + self._mixture(layer, x_td)
        x_td = _norm(x_td) * self._weights["norm"]
        logits = (x_td @ self._weights["output.weight"]) * self._weights["output.scale"] + self._weights["output.bias"]
        return functional.cross_entropy(logits.float().view(-1, VOCABULARY), targets_bs.reshape(-1), reduction="sum")

    def _dense(self, layer: int, place: int, name: str, x_td: Tensor) -> Tensor:
        return cast_input(x_td, self._inputs, (4 * layer + place,)) @ self._weights[f"layers.{layer}.{name}"]

    def _attention(self, layer: int, x_td: Tensor) -> Tensor:
        c = self._config
        x_td = _norm(x_td) * self._weights[f"layers.{layer}.attention_norm"]
        packed = self._dense(layer, 0, "attention.wqkv", x_td).view(
            -1, c.sequence, c.heads + 2 * c.kv_heads, c.head_width
        )
        q, k, v = torch.split(packed.transpose(1, 2), [c.heads, c.kv_heads, c.kv_heads], dim=1)
        if c.has_positions(layer):
            q, k, mask = _norm(self._rotate(q)), _norm(self._rotate(k)), self._chunked
        else:
            q, mask = q * self._temperature_s1, self._causal
        q_bkgsh = q.reshape(q.shape[0], c.kv_heads, -1, c.sequence, c.head_width)
        scores = q_bkgsh @ k[:, :, None].transpose(-1, -2) * c.head_width**-0.5 + mask
        mixed = torch.softmax(scores, dim=-1) @ v[:, :, None]
        rows_td = mixed.reshape(-1, c.heads, c.sequence, c.head_width).transpose(1, 2).reshape(-1, c.width)
        return self._dense(layer, 1, "attention.wo", rows_td)

    def _mixture(self, layer: int, x_td: Tensor) -> Tensor:
        x_td = _norm(x_td) * self._weights[f"layers.{layer}.mlp_norm"]
        gate, up = self._dense(layer, 2, "shared.w13", x_td).chunk(2, dim=-1)
        shared_td = self._dense(layer, 3, "shared.w2", functional.silu(gate) * up)
        return shared_td + self._router.routed(layer, x_td)

    def _rotate(self, x_bnsh: Tensor) -> Tensor:
        """Rotary positions on adjacent pairs, as Llama's complex product does."""
        even, odd = x_bnsh[..., 0::2], x_bnsh[..., 1::2]
        cos, sin = self._rope_cos, self._rope_sin
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON)


def _rotations(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [S, h/2]."""
    exponent = torch.arange(0, config.head_width, 2, device=device) / config.head_width
    angle = torch.arange(config.sequence, device=device)[:, None] * ROPE_THETA**-exponent
    return angle.cos(), angle.sin()


def _masks(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Additive masks [S, S]: causal within a chunk, and causal."""
    position = torch.arange(config.sequence, device=device)
    causal = position[:, None] >= position[None, :]
    chunk = position // config.attention_chunk
    together = chunk[:, None] == chunk[None, :]
    zero = torch.zeros(1, device=device)
    never = torch.full((1,), float("-inf"), device=device)
    return torch.where(causal & together, zero, never), torch.where(causal, zero, never)
