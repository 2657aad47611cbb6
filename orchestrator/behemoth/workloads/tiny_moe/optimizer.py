"""AdamW whose fp32 master weights and moments are shared out flat over the ranks that hold the same weights (ZeRO-1).

A bucket covers the dense weights (shared over dp) or the experts (over edp). Each weight's local block is cut by the
flat rule of checkpoints into one piece per rank; a rank's pieces lie one behind another in a bucket of Q elements,
each padded to its quota so that one exchange moves all of them. Padding is zero, stays zero and is no part of a
checkpoint. Suffixes: _kq is [ranks, Q], _q is [Q].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from behemoth.workloads.placement import FlatPiece
from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.fp8 import E4M3, encode
from behemoth.workloads.tiny_moe.groups import Group
from behemoth.workloads.tiny_moe.inventory import Weight

BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a weight's piece lies in the bucket: `length` elements from `offset`, padded to the piece's quota."""

    weight: Weight
    block: tuple[int, ...]
    piece: FlatPiece
    offset: int

    @property
    def length(self) -> int:
        return self.piece.stop - self.piece.start

    def of(self, bucket_q: Tensor) -> Tensor:
        """The piece without padding, a view."""
        return bucket_q[self.offset : self.offset + self.length]


class Bucket:
    """Master weights and moments of this rank, float32[Q]; float8 weights come before the bfloat16 ones."""

    def __init__(self, blocks: Sequence[tuple[Weight, tuple[int, ...]]], group: Group, device: torch.device) -> None:
        self.group = group
        self.slots = _lay_out(blocks, group)
        self.size = sum(slot.piece.quota for slot in self.slots)
        self.num_float8 = sum(slot.piece.quota for slot in self.slots if slot.weight.site is not None)
        self.master = torch.zeros(self.size, device=device)
        self.exp_avg = torch.zeros(self.size, device=device)
        self.exp_avg_sq = torch.zeros(self.size, device=device)
        decay = torch.tensor([float(slot.weight.decays) for slot in self.slots], device=device)
        quotas = torch.tensor([slot.piece.quota for slot in self.slots], device=device)
        self._decay = decay.repeat_interleave(quotas)
        sites, lengths = _stretches(self.slots)
        self._sites = torch.tensor(sites, device=device, dtype=torch.int64)
        self._lengths = torch.tensor(lengths, device=device, dtype=torch.int64)

    def pack(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """[ranks, Q] in float32: row i holds rank i's pieces of all `blocks`."""
        packed_kq = self.master.new_zeros((self.group.size, self.size))
        for slot in self.slots:
            flat, quota = blocks[slot.weight.name].reshape(-1), slot.piece.quota
            columns = packed_kq[:, slot.offset : slot.offset + quota]
            full = flat.numel() // quota
            columns[:full] = flat[: full * quota].view(full, quota)
            if full < self.group.size:
                columns[full, : flat.numel() - full * quota] = flat[full * quota :]
        return packed_kq

    def start_from(self, blocks: Mapping[str, Tensor]) -> None:
        """Take the master weights from whole local blocks."""
        self.master.copy_(self.pack(blocks)[self.group.index])

    def update(self, grads: Mapping[str, Tensor], step: int, config: Config) -> None:
        """Sum the gradients over the group and apply AdamW (Loshchilov and Hutter 2019, algorithm 2); blocks."""
        grad_q = self.group.sum_of_shares(self.pack(grads))
        self.exp_avg.lerp_(grad_q, 1 - BETA1)
        self.exp_avg_sq.mul_(BETA2).addcmul_(grad_q, grad_q, value=1 - BETA2)
        rate = config.learning_rate * min(1.0, step / config.warmup_steps)
        self.master.mul_(1 - rate * config.weight_decay * self._decay)
        spread_q = (self.exp_avg_sq / (1 - BETA2**step)).sqrt_().add_(EPSILON)
        self.master.addcdiv_(self.exp_avg, spread_q, value=-rate / (1 - BETA1**step))

    def amax(self, num_sites: int) -> Tensor:
        """float32[num_sites]: largest magnitude of this rank's float8 master weights by site, 0 where it has none."""
        per_stretch = torch.segment_reduce(self.master[: self.num_float8].abs(), "max", lengths=self._lengths)
        return self.master.new_zeros(num_sites).scatter_reduce(0, self._sites, per_stretch, "amax")

    def publish(self, stored: Mapping[str, Tensor], scale: Tensor) -> None:
        """Round the master weights to their stored types and give them to all ranks of the group; blocks.

        `stored` are the whole local blocks, filled in place; `scale` is [num_sites].
        """
        stretched = scale[self._sites].repeat_interleave(self._lengths)
        float8_q = encode(self.master[: self.num_float8], stretched).view(torch.uint8)
        bfloat16_q = self.master[self.num_float8 :].to(torch.bfloat16).view(torch.uint8)
        bytes_k = self.group.gather(torch.cat([float8_q, bfloat16_q]))
        float8_kq = bytes_k[:, : self.num_float8]
        bfloat16_kq = bytes_k[:, self.num_float8 :].contiguous().view(torch.bfloat16)
        for slot in self.slots:
            is_float8 = slot.weight.site is not None
            offset = slot.offset if is_float8 else slot.offset - self.num_float8
            source = float8_kq if is_float8 else bfloat16_kq
            pieces = source[:, offset : offset + slot.piece.quota].reshape(-1)[: slot.piece.numel]
            target = stored[slot.weight.name].view(-1)
            target.copy_(pieces.view(E4M3) if is_float8 else pieces)


def _lay_out(blocks: Sequence[tuple[Weight, tuple[int, ...]]], group: Group) -> list[Slot]:
    slots: list[Slot] = []
    offset = 0
    for weight, block in sorted(blocks, key=lambda item: item[0].site is None):
        piece = FlatPiece(numel=math.prod(block), size=group.size, index=group.index)
        slots.append(Slot(weight=weight, block=block, piece=piece, offset=offset))
        offset += piece.quota
    return slots


def _stretches(slots: Sequence[Slot]) -> tuple[list[int], list[int]]:
    """Sites and lengths of the runs of the float8 region that share one scale; padding belongs to the last of a slot.

    A dense weight is one site; in a stacked weight each of its local experts is one.
    """
    sites: list[int] = []
    lengths: list[int] = []
    for slot in slots:
        if slot.weight.site is None:
            continue
        num_matrices = slot.block[0] if len(slot.block) == 3 else 1
        for matrix, length in _matrices(slot.piece, slot.piece.numel // num_matrices):
            sites.append(slot.weight.site * num_matrices + matrix)
            lengths.append(length)
    return sites, lengths


def _matrices(piece: FlatPiece, matrix_numel: int) -> list[tuple[int, int]]:
    """(matrix, elements) for each matrix that a piece meets; together they fill the quota."""
    runs: list[tuple[int, int]] = []
    at = piece.start
    while at < piece.stop:
        matrix = at // matrix_numel
        end = min(piece.stop, (matrix + 1) * matrix_numel)
        runs.append((matrix, end - at))
        at = end
    padding = piece.quota - (piece.stop - piece.start)
    if not runs:
        return [(0, padding)]
    last_matrix, last_length = runs[-1]
    return [*runs[:-1], (last_matrix, last_length + padding)]
