"""float8_e4m3fn with delayed scaling: real state, emulated arithmetic.

Weights are stored in float8 with a scale each; activations are cast with a scale that follows from the maxima of the
last steps, as Transformer Engine's DelayedScaling does. A CPU has no float8 product, so operands are rounded to
float8 values and multiplied in the working type; gradients pass the cast unchanged and stay in the working type. The
neighbour is `trainer`, which agrees on the maxima between ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from behemoth.workloads.tiny_moe.config import HISTORY

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest finite value (OCP 8-bit floating point specification 1.0, table 2)."""


class Scales:
    """Histories and scales of some operands: `history` is float32[*sites, HISTORY], `scale` float32[*sites].

    stored value = round(value * scale). `history[..., 0]` is written in the forward pass, all else by `roll`.
    """

    def __init__(self, sites: Iterable[int], device: torch.device) -> None:
        shape = tuple(sites)
        self.history = torch.zeros((*shape, HISTORY), device=device)
        self.scale = torch.ones(shape, device=device)

    def observe(self, site: tuple[int, ...], amax: Tensor) -> None:
        """Raise the present step's maximum of `site` to `amax`, a scalar or one value per expert."""
        slot = self.present()[site]
        torch.maximum(slot, amax, out=slot)

    def present(self) -> Tensor:
        """This rank's maxima of the present step, float32[*sites]."""
        return self.history[..., 0]

    def roll(self, amax: Tensor) -> None:
        """Close a step: `amax` is its maximum over all ranks; a site that saw nothing all along keeps its scale."""
        self.history[..., 1:] = self.history[..., :-1].clone()
        self.history[..., 1] = amax
        self.history[..., 0] = 0.0
        largest = self.history.amax(dim=-1)
        torch.where(largest > 0, E4M3_MAX / largest, self.scale, out=self.scale)


class _Cast(torch.autograd.Function):
    """Round to float8 and back; the gradient passes (straight-through)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        return decode(encode(value, scale), scale, value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


def encode(value: Tensor, scale: Tensor) -> Tensor:
    """float8 of `value`; what exceeds the range saturates. `scale` broadcasts."""
    return (value * scale).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)


def decode(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (stored.to(torch.float32) / scale).to(dtype)


def cast_input(value: Tensor, scales: Scales, site: tuple[int, ...]) -> Tensor:
    """An operand of a dense product, any shape; its maximum is noted in the history."""
    scales.observe(site, value.detach().abs().amax())
    return _applied(value, scales.scale[site])


def cast_expert_input(value: Tensor, counts: Tensor, scales: Scales, site: int) -> Tensor:
    """An operand [rows, columns] of a grouped product: `counts[i]` rows of expert i, one expert behind another."""
    largest = value.detach().abs().amax(dim=1)
    scales.observe((site,), torch.segment_reduce(largest, "max", lengths=counts, initial=0.0))
    return _applied(value, scales.scale[site].repeat_interleave(counts)[:, None])


def _applied(value: Tensor, scale: Tensor) -> Tensor:
    result: Tensor = _Cast.apply(value, scale)
    return result
