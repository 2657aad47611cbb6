"""Routed experts: choose one for each token, carry the tokens to it over the ep axis, and back.

No token is dropped: ranks first tell each other how many rows come. Rows are permuted, never added up, so
nothing here depends on the order in which messages arrive. The neighbour is `model`, which adds the shared expert.
Suffixes: T own tokens, N received rows, d width, E all experts, L local ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.fp8 import Scales, cast_expert_input
from behemoth.workloads.tiny_moe.groups import Group, exchange_rows


class _Permute(torch.autograd.Function):
    """Rows in another order; the backward is the inverse order, without a scattered sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return rows[order]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.inverse], None, None


class Router:
    """`inputs` are the scales of the local experts' operands, two sites a layer; `noise` is this rank's generator.

    A little noise on the choice (not on the weight) keeps experts in use; it makes the generator's state part of a
    checkpoint.
    """

    def __init__(
        self, config: Config, weights: Mapping[str, Tensor], inputs: Scales, sharers: Group, noise: torch.Generator
    ) -> None:
        self._config = config
        self._weights = weights
        self._inputs = inputs
        self._sharers = sharers
        self._noise = noise

    def routed(self, layer: int, x_td: Tensor) -> Tensor:
        """What the experts add, [T, d]; blocks for the exchange of rows."""
        scores_te = x_td @ self._weights[f"layers.{layer}.router"]
        choice_t = self._choose(scores_te.detach())
        gate_t1 = torch.sigmoid(scores_te.gather(1, choice_t[:, None]))
        order = torch.argsort(choice_t, stable=True)
        inverse = _inverse(order)
        counts_e = torch.bincount(choice_t, minlength=self._config.experts)
        sorted_td = _permute(x_td * gate_t1, order, inverse)
        return _permute(self._through_experts(layer, sorted_td, counts_e), inverse, order)

    def _choose(self, scores_te: Tensor) -> Tensor:
        noise_te = torch.rand(scores_te.shape, generator=self._noise).to(scores_te.device)
        return (scores_te + self._config.router_noise * noise_te).argmax(dim=1)

    def _through_experts(self, layer: int, sorted_td: Tensor, counts_e: Tensor) -> Tensor:
        counts_out = counts_e.view(self._sharers.size, -1)
        counts_in = self._sharers.exchange(counts_out)
        sent, received = counts_out.sum(dim=1).tolist(), counts_in.sum(dim=1).tolist()
        rows_nd = exchange_rows(sorted_td, self._sharers, sent, received)
        order = _by_expert(counts_in)
        inverse = _inverse(order)
        result_nd = self._experts(layer, _permute(rows_nd, order, inverse), counts_in.sum(dim=0))
        return exchange_rows(_permute(result_nd, inverse, order), self._sharers, received, sent)

    def _experts(self, layer: int, x_nd: Tensor, counts_l: Tensor) -> Tensor:
        w13, w2 = (self._weights[f"layers.{layer}.experts.{name}"] for name in ("w13", "w2"))
        x_nd = cast_expert_input(x_nd, counts_l, self._inputs, 2 * layer)
        gate, up = _grouped_product(x_nd, w13, counts_l).chunk(2, dim=-1)
        hidden = cast_expert_input(functional.silu(gate) * up, counts_l, self._inputs, 2 * layer + 1)
        return _grouped_product(hidden, w2, counts_l)


def _grouped_product(rows: Tensor, weights: Tensor, counts_l: Tensor) -> Tensor:
    """The first counts_l[0] rows times weights[0], the next times weights[1], and so on."""
    parts = torch.split(rows, counts_l.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weights.unbind(0), strict=True)])


def _permute(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    result: Tensor = _Permute.apply(rows, order, inverse)
    return result


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return inverse


def _by_expert(counts_in: Tensor) -> Tensor:
    """The order that sorts received rows by local expert, [N]; `counts_in` [sources, L] tells how they came."""
    experts = torch.arange(counts_in.shape[1], device=counts_in.device).repeat(counts_in.shape[0])
    return torch.argsort(experts.repeat_interleave(counts_in.reshape(-1)), stable=True)
