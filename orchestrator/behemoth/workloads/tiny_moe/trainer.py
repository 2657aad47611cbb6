"""The model with its optimizer on one rank: compute gradients, update, and name the arrays that a checkpoint holds.

It knows no orchestrator: `program` tells it when to compute, fence and update, and any other loop (torchrun's, a
benchmark's) may do the same. Gradients are sums over all tokens of the step divided by their number.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from behemoth.workloads.corpus import Corpus, Cursor
from behemoth.workloads.placement import Placement
from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.experts import Router
from behemoth.workloads.tiny_moe.fp8 import E4M3, Scales, decode
from behemoth.workloads.tiny_moe.groups import Groups
from behemoth.workloads.tiny_moe.inventory import Held, Weight, inventory
from behemoth.workloads.tiny_moe.model import Decoder
from behemoth.workloads.tiny_moe.optimizer import Bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One array of a checkpoint: this rank's part `local` of the logical `shape`.

    `dims` maps split dims to mesh axes; `flat_over` is the axis over which the block is cut into flat pieces.
    """

    name: str
    local: Tensor
    shape: tuple[int, ...]
    dims: Mapping[int, Literal["ep"]]
    flat_over: Literal["dp", "edp"] | None = None
    is_mutable_in_forward: bool = False


class Trainer:
    """All state of one rank. Building it makes the weights of step 0, the same for every mesh; blocks on the peers."""

    def __init__(self, config: Config, placement: Placement, groups: Groups, corpus: Corpus) -> None:
        _check(config, placement)
        self.config = config
        self._placement = placement
        self._groups = groups
        self._num_local = config.experts // placement.ep
        self.cursor = Cursor(corpus, samples_per_step=config.batch, length=config.sequence)
        self.generator = torch.Generator().manual_seed(config.seed + placement.rank)
        device = groups.device
        self._weights = inventory(config)
        self._stored = {w.name: torch.empty(self._block(w), dtype=_type(w), device=device) for w in self._weights}
        self._working = {w.name: torch.zeros(self._block(w), device=device, requires_grad=True) for w in self._weights}
        self._dense_inputs, self._dense_weights = (
            Scales((4 * config.layers,), device),
            Scales((4 * config.layers,), device),
        )
        sites = (2 * config.layers, self._num_local)
        self._expert_inputs, self._expert_weights = Scales(sites, device), Scales(sites, device)
        self._dense = self._bucket(Held.DENSE)
        self._experts = self._bucket(Held.EXPERT)
        router = Router(config, self._working, self._expert_inputs, groups.sharers, self.generator)
        self._decoder = Decoder(config, self._working, self._dense_inputs, router)
        self._start()

    def gradients(self, step: int) -> Tensor:
        """Forward and backward for this rank's slots of `step`; the sum of its losses. Blocks on the peers."""
        slots = self.config.batch // self._placement.world_size
        batch = self.cursor.batch(step, first_slot=self._placement.rank * slots, num_slots=slots)
        tokens = torch.from_numpy(batch).to(self._groups.device)
        loss_sum = self._decoder.loss_sum(tokens[:, :-1], tokens[:, 1:])
        (loss_sum / self.tokens_per_step).backward()
        return loss_sum.detach()

    @property
    def tokens_per_step(self) -> int:
        return self.config.batch * self.config.sequence

    @torch.no_grad()
    def update(self, step: int, loss_sum: Tensor) -> float:
        """One optimizer step; the mean loss over its tokens, the same on every rank. Blocks on the peers."""
        for bucket in (self._dense, self._experts):
            grads = {slot.weight.name: self._grad(slot.weight.name) for slot in bucket.slots}
            bucket.update(grads, step, self.config)
        total = self._agree(loss_sum)
        self._publish()
        for working in self._working.values():
            working.grad = None
        return total / self.tokens_per_step

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the working copies from the stored weights; call it after the stored ones were restored."""
        for weight in self._weights:
            stored = self._stored[weight.name]
            self._working[weight.name].copy_(
                stored if weight.site is None else decode(stored, self._scale(weight), torch.float32)
            )

    def noise_state(self) -> bytes:
        """State of this rank's random generator (5056 bytes)."""
        return self.generator.get_state().numpy().tobytes()

    def set_noise_state(self, state: object) -> None:
        """Raises ValueError for other than bytes."""
        if not isinstance(state, bytes):
            raise ValueError(f"random generator: expected its state as bytes, got {type(state).__name__}")
        self.generator.set_state(torch.from_numpy(np.frombuffer(state, np.uint8).copy()))

    def shards(self) -> Iterator[Shard]:
        """Every array of a checkpoint, in a fixed order; the tensors stay the same objects for ever."""
        for weight in self._weights:
            yield Shard(
                name=f"model/{weight.name}", local=self._stored[weight.name], shape=weight.shape, dims=_dims(weight)
            )
        buckets: tuple[tuple[Bucket, Literal["dp", "edp"]], ...] = ((self._dense, "dp"), (self._experts, "edp"))
        for bucket, axis in buckets:
            for kind, values in (
                ("master", bucket.master),
                ("exp_avg", bucket.exp_avg),
                ("exp_avg_sq", bucket.exp_avg_sq),
            ):
                for slot in bucket.slots:
                    w = slot.weight
                    yield Shard(
                        name=f"optim/{kind}/{w.name}",
                        local=slot.of(values),
                        shape=w.shape,
                        dims=_dims(w),
                        flat_over=axis,
                    )
        yield from self._scale_shards()

    def _scale_shards(self) -> Iterator[Shard]:
        dense: dict[int, Literal["ep"]] = {}
        experts: dict[int, Literal["ep"]] = {1: "ep"}
        for name, scales, dims in (
            ("dense/input", self._dense_inputs, dense),
            ("dense/weight", self._dense_weights, dense),
            ("experts/input", self._expert_inputs, experts),
            ("experts/weight", self._expert_weights, experts),
        ):
            for kind, local in (("history", scales.history), ("scale", scales.scale)):
                shape = list(local.shape)
                for dim in dims:
                    shape[dim] = self.config.experts
                yield Shard(
                    name=f"fp8/{name}_{kind}", local=local, shape=tuple(shape), dims=dims, is_mutable_in_forward=True
                )

    def _block(self, weight: Weight) -> tuple[int, ...]:
        """Shape of this rank's block: the experts' first dim is split over ep."""
        return weight.shape if weight.held is Held.DENSE else (self._num_local, *weight.shape[1:])

    def _bucket(self, held: Held) -> Bucket:
        group = self._groups.world if held is Held.DENSE else self._groups.holders
        return Bucket([(w, self._block(w)) for w in self._weights if w.held is held], group, self._groups.device)

    @torch.no_grad()
    def _start(self) -> None:
        for bucket in (self._dense, self._experts):
            bucket.start_from({slot.weight.name: self._first(slot.weight) for slot in bucket.slots})
        self._agree(torch.zeros((), device=self._groups.device))
        self._publish()

    def _first(self, weight: Weight) -> Tensor:
        """The local block of a weight at step 0: a function of seed and name, so that every mesh starts alike."""
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + zlib.crc32(weight.name.encode()))
        whole = torch.randn(weight.shape, generator=generator) * weight.spread + weight.level
        if weight.held is Held.EXPERT:
            whole = whole.narrow(0, self._placement.ep_index * self._num_local, self._num_local)
        return whole.to(self._groups.device)

    def _grad(self, name: str) -> Tensor:
        grad = self._working[name].grad
        if grad is None:
            raise RuntimeError(f"weight {name}: expected a gradient, got none")
        return grad

    def _agree(self, loss_sum: Tensor) -> float:
        """Close the step's maxima over all ranks in one exchange; the sum of the ranks' losses, added in rank order."""
        dense = torch.cat([self._dense_inputs.present(), self._dense.amax(self._dense_weights.scale.numel())])
        experts = torch.stack(
            [
                self._expert_inputs.present(),
                self._experts.amax(self._expert_weights.scale.numel()).view(-1, self._num_local),
            ]
        )
        everywhere = dense.new_zeros((*experts.shape[:2], self.config.experts))
        everywhere.narrow(2, self._placement.ep_index * self._num_local, self._num_local).copy_(experts)
        told = self._groups.world.gather(torch.cat([dense, everywhere.reshape(-1), loss_sum.reshape(1).float()]))
        largest = told[:, :-1].amax(dim=0)
        dense_inputs, dense_weights = largest[: dense.numel()].chunk(2)
        own = (
            largest[dense.numel() :]
            .view(everywhere.shape)
            .narrow(2, self._placement.ep_index * self._num_local, self._num_local)
        )
        self._dense_inputs.roll(dense_inputs)
        self._dense_weights.roll(dense_weights)
        self._expert_inputs.roll(own[0])
        self._expert_weights.roll(own[1])
        return math.fsum(told[:, -1].tolist())

    def _publish(self) -> None:
        self._dense.publish(self._stored, self._dense_weights.scale)
        self._experts.publish(self._stored, self._expert_weights.scale.view(-1))
        self.refresh()

    def _scale(self, weight: Weight) -> Tensor:
        if weight.held is Held.DENSE:
            return self._dense_weights.scale[weight.site]
        return self._expert_weights.scale[weight.site][:, None, None]


def _check(config: Config, placement: Placement) -> None:
    if config.batch % placement.world_size:
        raise ValueError(
            f"workload.args.batch: expected a multiple of {placement.world_size} ranks, got {config.batch}"
        )
    if config.experts % placement.ep:
        raise ValueError(f"mesh.ep: expected a divisor of {config.experts} experts, got {placement.ep}")


def _type(weight: Weight) -> torch.dtype:
    return torch.bfloat16 if weight.site is None else E4M3


def _dims(weight: Weight) -> dict[int, Literal["ep"]]:
    return {} if weight.held is Held.DENSE else {0: "ep"}
