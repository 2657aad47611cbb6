"""State dicts as training programs have them: FSDP2, tensor parallel, both, hybrid, placements and dtypes by hand.

Each is a function of a seed that gives a state dict on the present world, whatever its size; equal seeds give equal
logical tensors on any world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from behemoth.dcp.dtypes import TORCH_DTYPES

ODD, EVEN = 13, 16


class Program(Stateful):
    """A model and its optimizer after a step, as torch's DCP recipe wraps them."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 + seed, betas=(0.9, 0.5 / (1 + seed)))
        torch.manual_seed(seed)
        self.model(torch.randn(4, _width(model))).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optim"],
        )


def _width(model: nn.Module) -> int:
    return ODD if getattr(model, "is_odd", False) else EVEN


def _model(seed: int, width: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.LayerNorm(width))
    setattr(model, "is_odd", width == ODD)  # noqa: B010 - a module takes tensors and modules alone for attributes
    return model


def fsdp(seed: int) -> dict[str, Any]:
    """FSDP2: rows that no world divides, small vectors of which some ranks have nothing."""
    model = _model(seed, ODD)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    return {"app": Program(model, seed), "step": seed, "names": ["a", ("b", seed)]}


def tensor_parallel_fsdp(seed: int) -> dict[str, Any]:
    """TP x FSDP2: the same rows cut twice, which torch calls a strided shard; on an odd world, FSDP2 alone."""
    model = _model(seed, EVEN)
    mesh = _two_dims()
    if mesh is not None:
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=None if mesh is None else mesh["dp"])
    return {"app": Program(model, seed)}


def hybrid_fsdp(seed: int) -> dict[str, Any]:
    """HSDP: shards that several ranks hold alike."""
    model = _model(seed, ODD)
    fully_shard(model, mesh=_two_dims())
    return {"app": Program(model, seed)}


def placements(seed: int) -> dict[str, Any]:
    """Every placement, on one dim and two, of tensors with sizes that do and do not divide, and of none."""
    torch.manual_seed(seed)
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    grid = _two_dims() or init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("dp", "tp"))
    on_grid: list[tuple[Placement, Placement]] = [
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Shard(0), Shard(0)),
        (Replicate(), Shard(1)),
        (Shard(2), Replicate()),
        (Shard(2), Shard(1)),
    ]
    state: dict[str, Any] = {
        f"grid.{number}": distribute_tensor(torch.randn(6, 5, 7), grid, pair) for number, pair in enumerate(on_grid)
    }
    for dim in range(3):
        state[f"line.{dim}"] = distribute_tensor(torch.randn(5, 3, 8), line, [Shard(dim)])
    state["columns"] = distribute_tensor(torch.randn(64, 48), line, [Shard(1)])
    state["replicated"] = distribute_tensor(torch.randn(5, 3), line, [Replicate()])
    state["one row"] = distribute_tensor(torch.randn(1, 6), line, [Shard(0)])
    return state


def dtypes(seed: int) -> dict[str, Any]:
    """Every dtype that torch and the format have, cut by rows and whole, and shapes at the edge."""
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = {name: _of_dtype(dtype) for name, dtype in TORCH_DTYPES.items()}
    state: dict[str, Any] = {f"whole.{name}": tensor for name, tensor in whole.items()}
    state |= {f"rows.{name}": _rows(tensor, mesh) for name, tensor in whole.items()}
    state["scalar"] = torch.tensor(seed)
    state["scalar of bfloat16"] = torch.tensor(seed + 0.5, dtype=torch.bfloat16)
    state["nothing"] = torch.empty(3, 0, dtype=torch.int16)
    state["transposed"] = torch.randn(6, 4).t()
    state["nested"] = {"list": [torch.randn(2), {"deep": torch.randn(3)}], "lr": 0.25 * seed, "none": None}
    return state


STATES: Mapping[str, Callable[[int], dict[str, Any]]] = {
    function.__name__: function for function in (fsdp, tensor_parallel_fsdp, hybrid_fsdp, placements, dtypes)
}


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """What a state dict holds, by path: of each tensor the bytes that this rank has, all else as it is."""
    if isinstance(state, Stateful):
        return leaves(state.state_dict(), path)
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, list) and any(isinstance(one, torch.Tensor | Mapping) for one in state):
        items = enumerate(state)
    else:
        return {path: _leaf(state)}
    found: dict[str, Any] = {}
    for name, value in items:
        found |= leaves(value, f"{path}/{name}")
    return found


def _leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    local = (value.to_local() if isinstance(value, DTensor) else value).detach()
    return (str(local.dtype), tuple(local.shape), local.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _two_dims() -> DeviceMesh | None:
    """Half of the ranks by two; None where there is no such half."""
    world = dist.get_world_size()
    return init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp")) if world % 2 == 0 else None


def _of_dtype(dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, (5, 3)).bool()
    itemsize = dtype.itemsize
    return torch.randint(0, 120, (5, 3 * itemsize), dtype=torch.uint8).view(dtype)


def _rows(tensor: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """As distribute_tensor does, which sends no float8 over gloo."""
    parts = tensor.split(-(-len(tensor) // mesh.size()))
    rank = mesh.get_local_rank()
    local = parts[rank] if rank < len(parts) else tensor[:0]
    return DTensor.from_local(
        local.clone(), mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=(tensor.shape[1], 1)
    )
