"""Communication between the ranks, reduced to three exchanges whose result does not depend on timing.

There is no all-reduce here: sums are taken locally in rank order, after the terms were exchanged, so a mesh gives the
same bits each time on gloo and on NCCL. A group of one rank exchanges nothing and needs no process group.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from behemoth.workloads.placement import Placement

TIMEOUT = timedelta(seconds=60)
"""For one collective and for joining. A dead peer is seen at once by its closed socket; this bounds the rest, and the
orchestrator's limit on a step is shorter."""
KNOCK_LIMIT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.1


class Group:
    """Ranks that exchange; `index` is this rank's place among `size`, `handle` torch's group (None: all ranks).

    Every method blocks, and all ranks of the group call the same ones in the same order.
    """

    def __init__(self, *, size: int, index: int, handle: dist.ProcessGroup | None) -> None:
        self.size = size
        self.index = index
        self._handle = handle

    def gather(self, piece: Tensor) -> Tensor:
        """[size, *piece.shape]: everybody's piece, in rank order."""
        if self.size == 1:
            return piece[None]
        whole = piece.new_empty((self.size * piece.numel(),))
        dist.all_gather_into_tensor(whole, piece.reshape(-1), group=self._handle)
        return whole.view(self.size, *piece.shape)

    def exchange(self, rows: Tensor) -> Tensor:
        """Row i of `rows` [size, n] goes to rank i; row j of the result came from rank j."""
        return self.exchange_rows(rows, [1] * self.size, [1] * self.size)

    def exchange_rows(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """The first sent[0] rows go to rank 0, and so on; received[j] rows come from rank j."""
        if self.size == 1:
            return rows
        result = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(result, rows.contiguous(), received, sent, group=self._handle)
        return result

    def sum_of_shares(self, shares: Tensor) -> Tensor:
        """Reduce-scatter: row i of `shares` [size, n] is this rank's term for rank i; the sum over ranks, in rank
        order, of the terms for this rank, [n]."""
        terms = self.exchange(shares)
        total = terms[0].clone()
        for term in terms[1:]:
            total += term
        return total


class _ExchangeRows(torch.autograd.Function):
    """The backward of an exchange of rows is the exchange the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, sent: list[int], received: list[int]) -> Tensor:
        ctx.way_back = (group, received, sent)
        return group.exchange_rows(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        group, sent, received = ctx.way_back
        return group.exchange_rows(grad, sent, received), None, None, None


def exchange_rows(rows: Tensor, group: Group, sent: list[int], received: list[int]) -> Tensor:
    """`Group.exchange_rows` that gradients pass through."""
    if group.size == 1:
        return rows
    result: Tensor = _ExchangeRows.apply(rows, group, sent, received)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """`world`: all ranks (dp). `sharers`: ranks with different experts (ep). `holders`: with the same ones (edp)."""

    world: Group
    sharers: Group
    holders: Group
    device: torch.device


def open_groups(placement: Placement) -> Groups:
    """Join the other ranks under torchrun's variables (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE).

    NCCL where every local rank has a GPU of its own, else gloo. Blocks until all have come, at most KNOCK_LIMIT_S and
    TIMEOUT.
    """
    device = _device(placement)
    if placement.world_size == 1:
        alone = Group(size=1, index=0, handle=None)
        return Groups(world=alone, sharers=alone, holders=alone, device=device)
    if placement.rank != 0 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        await_listener(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        rank=placement.rank,
        world_size=placement.world_size,
    )
    return Groups(
        world=Group(size=placement.world_size, index=placement.rank, handle=None),
        sharers=_group(placement.sharers(), placement.rank),
        holders=_group(placement.holders(), placement.rank),
        device=device,
    )


def await_listener(host: str, port: int) -> None:
    """Until rank 0 listens, at most KNOCK_LIMIT_S: torch's own tries go on after that.

    torch's client sleeps for half a second and more when it comes too early, longer than all the rest of a restart.
    """
    deadline = time.monotonic() + KNOCK_LIMIT_S
    pause_s = _FIRST_PAUSE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), _FIRST_PAUSE_S)).close()
        except OSError:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            return


def close_groups() -> None:
    """Leave the process group, if there is one; collectives of others that wait for this rank then fail at once."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(placement: Placement) -> torch.device:
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", placement.local_rank + 1))
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_ranks:
        device = torch.device("cuda", placement.local_rank)
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _group(lists: list[list[int]], rank: int) -> Group:
    """Every rank creates every group, as torch demands; a list of one rank needs none."""
    mine = Group(size=1, index=0, handle=None)
    for ranks in lists:
        if len(ranks) == 1:
            continue
        handle = dist.new_group(ranks, timeout=TIMEOUT)
        if rank in ranks and isinstance(handle, dist.ProcessGroup):
            mine = Group(size=len(ranks), index=ranks.index(rank), handle=handle)
    return mine
