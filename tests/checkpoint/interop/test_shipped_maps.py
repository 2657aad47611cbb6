"""The maps that ship, on toys with the real names: out, read by the safetensors library, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.casts import converted
from behemoth.checkpoint.interop.export import export
from behemoth.checkpoint.interop.export_plan import plan_export
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.map_file import named_map
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.inventory import inventory
from checkpoint.checkpoint_rig import save
from checkpoint.interop.imported import import_tensors
from checkpoint.interop.tensor_trees import chunked

Arrays = Mapping[str, np.ndarray]
LLAMAS = ("scout", "maverick", "behemoth-ref")


def checkpoint_of(arrays: Arrays) -> tuple[ObjectStore, dict[str, Tensor]]:
    """A checkpoint saved by two ranks, and its tensors."""
    store = MemoryStore()
    specs = (
        ArraySpec(name=name, dtype=one.dtype.name, shape=one.shape, flat_over="dp") for name, one in arrays.items()
    )
    layout = Layout(mesh=Mesh(dp=2, edp=2), arrays=tuple(specs))
    commit = open_commit(store, save(store, layout, arrays, step=1).ref)
    return store, stored_tensors(store, commit, threads=1)


def exported(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """What the library reads of an export in several files."""
    export(LocalStore(folder), plan_export(tensors, max_file_bytes=1000, metadata={"format": "pt"}))
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    found: dict[str, torch.Tensor] = {}
    for file in files:
        found |= safetensors.torch.load_file(file)
    return found


def imported(folder: Path, map_name: str) -> Arrays:
    store = MemoryStore()
    tensors = named_map(map_name).inverse().apply(read_model(LocalStore(folder), threads=1).tensors)
    record = import_tensors(store, tensors)
    commit = open_commit(store, record.ref)
    return {array.name: read_array(store, commit, array.name) for array in commit.layout.arrays}


def random(shape: tuple[int, ...], seed: int, dtype: npt.DTypeLike) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def numpy_bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def same_bits(array: np.ndarray, tensor: torch.Tensor) -> bool:
    return array.shape == tuple(tensor.shape) and array.tobytes() == numpy_bits(tensor).tobytes()


def toy_llama(model: str) -> dict[str, np.ndarray]:
    """Every weight of the first layers under its real name, in bfloat16, with small but distinct sizes."""
    tensors = [one for one in named_inventory(model).tensors if not any(f".{n}." in one.name for n in range(2, 100))]
    sizes = sorted({size for tensor in tensors for size in tensor.shape})
    return {
        one.name: random(tuple(3 + sizes.index(size) for size in one.shape), seed, ml_dtypes.bfloat16)
        for seed, one in enumerate(tensors)
    }


@pytest.mark.parametrize("model", LLAMAS)
def test_a_toy_of_the_llama_4_family_goes_out_under_the_real_names_and_comes_back(model: str, tmp_path: Path) -> None:
    theirs = toy_llama(model)
    ours = {f"model/{name}": array for name, array in theirs.items()}
    others = {"optim/master/x": random((4,), 1, np.float32), "state/run": np.ones(9, np.uint8)}
    _, tensors = checkpoint_of({**ours, **others})
    found = exported(named_map("llama4-hf").apply(tensors), tmp_path)
    assert found.keys() == theirs.keys()
    assert all(same_bits(array, found[name]) for name, array in theirs.items())
    back = imported(tmp_path, "llama4-hf")
    assert back.keys() == ours.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in ours.items())


@pytest.mark.parametrize("model", LLAMAS)
def test_every_weight_of_the_family_has_a_rule_both_ways(model: str) -> None:
    one = chunked(np.zeros(1, np.float32))
    names = [tensor.name for tensor in named_inventory(model).tensors]
    assert len(names) > 1000
    the_map = named_map("llama4-hf")
    assert list(the_map.apply({f"model/{name}": one for name in names})) == names
    assert list(the_map.inverse().apply(dict.fromkeys(names, one))) == [f"model/{name}" for name in names]


def test_a_weight_that_is_not_of_the_family_is_refused() -> None:
    one = chunked(np.zeros(1, np.float32))
    with pytest.raises(Invalid, match=r"'model/language_model\.model\.layers\.0\.mlp\.weight': expected a rule"):
        named_map("llama4-hf").apply({"model/language_model.model.layers.0.mlp.weight": one})


def tiny_moe(config: Config) -> dict[str, np.ndarray]:
    """Master weights of the reference workload, of any configuration, by their names in its checkpoints."""
    weights = inventory(config)
    return {f"optim/master/{one.name}": random(one.shape, seed, np.float32) for seed, one in enumerate(weights)}


CONFIGS = (
    Config(layers=2, width=16, heads=4, kv_heads=2, experts=3, expert_width=6),
    Config(layers=1, width=48, heads=8, kv_heads=1, experts=2, expert_width=5),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_reference_workload_goes_out_as_a_llama_4_and_comes_back(config: Config, tmp_path: Path) -> None:
    ours = tiny_moe(config)
    others = {
        "model/embedding": random((2, 2), 1, ml_dtypes.bfloat16),
        "fp8/dense/input_scale": np.ones(2, np.float32),
        "optim/exp_avg/norm": np.ones(2, np.float32),
        "optim/exp_avg_sq/norm": np.ones(2, np.float32),
        "state/ranks": np.ones((2, 3), np.uint8),
    }
    _, tensors = checkpoint_of({**ours, **others})
    found = exported(named_map("tiny-moe-hf").apply(tensors), tmp_path)
    assert len(found) == 12 * config.layers + 5
    layer = "model.layers.0"
    packed = ours["optim/master/layers.0.attention.wqkv"]
    wide, narrow = config.heads * config.head_width, config.kv_heads * config.head_width
    q, k, v = packed[:, :wide], packed[:, wide : wide + narrow], packed[:, wide + narrow :]
    gate, up = np.split(ours["optim/master/layers.0.shared.w13"], 2, axis=1)
    for name, array in (
        (f"{layer}.self_attn.q_proj.weight", q.T),
        (f"{layer}.self_attn.k_proj.weight", k.T),
        (f"{layer}.self_attn.v_proj.weight", v.T),
        (f"{layer}.self_attn.o_proj.weight", ours["optim/master/layers.0.attention.wo"].T),
        (f"{layer}.feed_forward.shared_expert.gate_proj.weight", gate.T),
        (f"{layer}.feed_forward.shared_expert.up_proj.weight", up.T),
        (f"{layer}.feed_forward.shared_expert.down_proj.weight", ours["optim/master/layers.0.shared.w2"].T),
        (f"{layer}.feed_forward.experts.gate_up_proj", ours["optim/master/layers.0.experts.w13"]),
        (f"{layer}.feed_forward.experts.down_proj", ours["optim/master/layers.0.experts.w2"]),
        (f"{layer}.feed_forward.router.weight", ours["optim/master/layers.0.router"].T),
        (f"{layer}.input_layernorm.weight", ours["optim/master/layers.0.attention_norm"]),
        (f"{layer}.post_attention_layernorm.weight", ours["optim/master/layers.0.mlp_norm"]),
        ("model.embed_tokens.weight", ours["optim/master/embedding"]),
        ("model.norm.weight", ours["optim/master/norm"]),
        ("lm_head.weight", ours["optim/master/output.weight"].T),
        ("lm_head.bias", ours["optim/master/output.bias"]),
        ("lm_head.scale", ours["optim/master/output.scale"]),
    ):
        assert same_bits(np.ascontiguousarray(array), found[name]), name
    back = imported(tmp_path, "tiny-moe-hf")
    assert back.keys() == ours.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in ours.items())


def test_masters_go_out_in_bfloat16_as_torch_would_make_them(tmp_path: Path) -> None:
    _, tensors = checkpoint_of(tiny_moe(CONFIGS[0]))
    exact = exported(named_map("tiny-moe-hf").apply(tensors), tmp_path / "exact")
    rounded = exported(converted(named_map("tiny-moe-hf").apply(tensors), "bfloat16"), tmp_path / "rounded")
    assert rounded.keys() == exact.keys()
    assert all(torch.equal(rounded[name], tensor.to(torch.bfloat16)) for name, tensor in exact.items())


def test_masters_go_out_in_float8_with_scales_but_for_what_the_map_keeps(tmp_path: Path) -> None:
    the_map = named_map("tiny-moe-hf")
    _, tensors = checkpoint_of(tiny_moe(CONFIGS[0]))
    exact = exported(the_map.apply(tensors), tmp_path / "exact")
    made = converted(the_map.apply(tensors), "float8_e4m3fn", is_unscaled=the_map.is_unscaled)
    found = exported(made, tmp_path / "float8")
    kept = {name for name in exact if "router" in name or name in ("model.embed_tokens.weight", "lm_head.weight")}
    scaled = {name for name, tensor in exact.items() if tensor.dim() > 1} - kept
    assert found.keys() == exact.keys() | {f"{name}_scale" for name in scaled}
    for name, tensor in exact.items():
        if name in scaled:
            scale = tensor.abs().max() / 448
            assert torch.equal(found[f"{name}_scale"], scale.reshape(1))
            wanted = (tensor / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            assert torch.equal(found[name].view(torch.uint8), wanted.view(torch.uint8))
        else:
            assert torch.equal(found[name], tensor.to(torch.bfloat16))


def test_weights_alone_keep_their_names(tmp_path: Path) -> None:
    arrays = {"model/a/b.c": random((20, 30), 1, np.float32), "model/d": random((40, 30), 2, np.float32)}
    _, tensors = checkpoint_of({**arrays, "model/e": random((1000,), 3, np.float32), "optim/m": np.ones(3, np.float32)})
    found = exported(named_map("weights").apply(tensors), tmp_path)
    assert found.keys() == {"a/b.c", "d", "e"}
    assert imported(tmp_path, "weights").keys() == {"model/a/b.c", "model/d", "model/e"}
