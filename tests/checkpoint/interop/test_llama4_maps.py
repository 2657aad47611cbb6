"""The Llama 4 family under Meta's and Megatron-Core's names: each layout against its definition, and back, bit for bit.

The definitions are written out here by hand, from the places that the maps name: the load hooks of llama-models, and
NeMo's `import_qkv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.interop.export import export
from behemoth.checkpoint.interop.export_plan import plan_export
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.map_file import named_map
from behemoth.checkpoint.interop.rules import NameMap
from behemoth.checkpoint.interop.tensors import Raw, Tensor
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.spec.model import named_inventory
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from checkpoint.interop.imported import import_tensors
from checkpoint.interop.tensor_trees import chunked

HEAD, GROUPS, HEADS, VISION_HEADS = 4, 2, 6, 3
HIDDEN, VISION = HEADS * HEAD, VISION_HEADS * 4
"""A toy's attention: six heads of q and two of k and v, each of four rows; three heads in the vision tower."""
SIZES = {
    "scout": {5120: HIDDEN, 1024: GROUPS * HEAD, 16: 3, 16384: 10, 8192: 5},
    "maverick": {5120: HIDDEN, 1024: GROUPS * HEAD, 128: 7, 16384: 10, 8192: 5},
    "behemoth-ref": {16384: HIDDEN, 1024: GROUPS * HEAD, 16: 3, 53248: 10, 26624: 5},
}
"""Toy sizes for the real ones, related as these are: hidden, kv rows, experts, gate and up, intermediate."""
OF_ALL = {202048: 13, 1408: VISION, 577: 9, 588: 11, 5632: 14, 4096: 8}
Arrays = Mapping[str, np.ndarray]


def toy(model: str) -> dict[str, np.ndarray]:
    """Every weight of the first layers under its real name, in bfloat16."""
    tensors = [one for one in named_inventory(model).tensors if not any(f".{n}." in one.name for n in range(2, 100))]
    sizes = {**OF_ALL, **SIZES[model]}
    rng = np.random.default_rng(5)
    return {
        f"model/{one.name}": rng.normal(size=[sizes[size] for size in one.shape]).astype(ml_dtypes.bfloat16)
        for one in tensors
    }


def toy_map(name: str) -> NameMap:
    is_megatron = name == "llama4-megatron"
    return named_map(name, {"head": HEAD, "groups": GROUPS, "vision_heads": VISION_HEADS} if is_megatron else None)


def exported(ours: Arrays, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What the safetensors library reads of an export."""
    tensors: dict[str, Tensor] = {key: chunked(array, dtype="bfloat16") for key, array in ours.items()}
    tensors["optim/m"] = chunked(np.ones(3, np.float32))
    export(LocalStore(folder), plan_export(toy_map(name).apply(tensors), max_file_bytes=1 << 30, metadata={}))
    return safetensors.torch.load_file(folder / "model.safetensors")


def imported(folder: Path, name: str) -> Arrays:
    store = MemoryStore()
    tensors = toy_map(name).inverse().apply(read_model(LocalStore(folder), threads=1).tensors)
    record = import_tensors(store, tensors)
    commit = open_commit(store, record.ref)
    return {array.name: read_array(store, commit, array.name) for array in commit.layout.arrays}


def as_torch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)


def is_moe(ours: Mapping[str, object], layer: int) -> bool:
    return f"model/language_model.model.layers.{layer}.feed_forward.router.weight" in ours


def meta_definition(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text model as llama-models' load hooks take it apart, run backwards."""
    text = {name.removeprefix("model/language_model."): one for name, one in ours.items() if "language_model" in name}
    found = {
        "tok_embeddings.weight": text["model.embed_tokens.weight"],
        "norm.weight": text["model.norm.weight"],
        "output.weight": text["lm_head.weight"],
    }
    for number in range(2):
        theirs, layer = f"layers.{number}", f"model.layers.{number}"
        q, k, v = (text[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
        found[f"{theirs}.attention.wqkv.weight"] = torch.cat([q, k, v])
        found[f"{theirs}.attention.wqkv.layer_norm_weight"] = text[f"{layer}.input_layernorm.weight"]
        found[f"{theirs}.attention.wo.weight"] = text[f"{layer}.self_attn.o_proj.weight"]
        norm, ffn = text[f"{layer}.post_attention_layernorm.weight"], f"{layer}.feed_forward"
        if not is_moe(ours, number):
            gate, up = text[f"{ffn}.gate_proj.weight"], text[f"{ffn}.up_proj.weight"]
            found[f"{theirs}.feed_forward.mlp.layer_norm_weight"] = norm
            found[f"{theirs}.feed_forward.mlp.fc1_weight"] = torch.cat([gate, up])
            found[f"{theirs}.feed_forward.mlp.fc2_weight"] = text[f"{ffn}.down_proj.weight"]
            continue
        found[f"{theirs}.feed_forward.norm.weight"] = norm
        found[f"{theirs}.feed_forward.router_DE"] = text[f"{ffn}.router.weight"].T
        gate, up = text[f"{ffn}.experts.gate_up_proj"].chunk(2, dim=-1)
        experts = f"{theirs}.feed_forward.experts"
        found[f"{experts}.moe_w_in_eD_F"] = gate.reshape(-1, gate.shape[-1])
        found[f"{experts}.moe_w_swiglu_eD_F"] = up.reshape(-1, up.shape[-1])
        found[f"{experts}.moe_w_out_eF_D"] = text[f"{ffn}.experts.down_proj"].reshape(-1, HIDDEN)
        for name, ours_name in (("w_in_shared_FD", "gate"), ("w_swiglu_FD", "up"), ("w_out_shared_DF", "down")):
            found[f"{theirs}.feed_forward.{name}.weight"] = text[f"{ffn}.shared_expert.{ours_name}_proj.weight"]
    return found


def grouped_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_groups: int) -> torch.Tensor:
    """For each query group in turn its heads of q, its k, its v."""
    parts = []
    for group in range(num_groups):
        for one in (q, k, v):
            rows = one.shape[0] // num_groups
            parts.append(one[group * rows : (group + 1) * rows])
    return torch.cat(parts)


def megatron_definition(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text model and the vision attention."""
    text = {name.removeprefix("model/language_model."): one for name, one in ours.items() if "language_model" in name}
    found = {
        "language_model.embedding.word_embeddings.weight": text["model.embed_tokens.weight"],
        "language_model.decoder.final_layernorm.weight": text["model.norm.weight"],
        "language_model.output_layer.weight": text["lm_head.weight"],
    }
    for number in range(2):
        theirs, layer = f"language_model.decoder.layers.{number}", f"model.layers.{number}"
        q, k, v = (text[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
        found[f"{theirs}.self_attention.linear_qkv.weight"] = grouped_qkv(q, k, v, GROUPS)
        found[f"{theirs}.self_attention.linear_qkv.layer_norm_weight"] = text[f"{layer}.input_layernorm.weight"]
        found[f"{theirs}.self_attention.linear_proj.weight"] = text[f"{layer}.self_attn.o_proj.weight"]
        norm, ffn = text[f"{layer}.post_attention_layernorm.weight"], f"{layer}.feed_forward"
        if not is_moe(ours, number):
            gate, up = text[f"{ffn}.gate_proj.weight"], text[f"{ffn}.up_proj.weight"]
            found[f"{theirs}.mlp.linear_fc1.layer_norm_weight"] = norm
            found[f"{theirs}.mlp.linear_fc1.weight"] = torch.cat([gate, up])
            found[f"{theirs}.mlp.linear_fc2.weight"] = text[f"{ffn}.down_proj.weight"]
            continue
        found[f"{theirs}.pre_mlp_layernorm.weight"] = norm
        found[f"{theirs}.mlp.router.weight"] = text[f"{ffn}.router.weight"]
        for expert, (fc1, fc2) in enumerate(
            zip(text[f"{ffn}.experts.gate_up_proj"], text[f"{ffn}.experts.down_proj"], strict=True)
        ):
            found[f"{theirs}.mlp.experts.linear_fc1.weight{expert}"] = fc1.T
            found[f"{theirs}.mlp.experts.linear_fc2.weight{expert}"] = fc2.T
        gate, up = (text[f"{ffn}.shared_expert.{name}_proj.weight"] for name in ("gate", "up"))
        found[f"{theirs}.mlp.shared_experts.linear_fc1.weight"] = torch.cat([gate, up])
        found[f"{theirs}.mlp.shared_experts.linear_fc2.weight"] = text[f"{ffn}.shared_expert.down_proj.weight"]
    for number in range(2):
        of_layer = f"model/vision_model.model.layers.{number}.self_attn"
        for part in ("weight", "bias"):
            q, k, v = (ours[f"{of_layer}.{name}_proj.{part}"] for name in "qkv")
            name = f"vision_model.decoder.layers.{number}.self_attention.linear_qkv.{part}"
            found[name] = grouped_qkv(q, k, v, VISION_HEADS)
    found["vision_model.class_token"] = ours["model/vision_model.class_embedding"].reshape(1, 1, -1)
    return found


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("name", ["llama4-meta", "llama4-megatron"])
def test_a_toy_goes_out_as_the_definition_has_it_and_comes_back(model: str, name: str, tmp_path: Path) -> None:
    ours = toy(model)
    found = exported(ours, name, tmp_path)
    definition = meta_definition if name == "llama4-meta" else megatron_definition
    wanted = definition({key: as_torch(array) for key, array in ours.items()})
    assert wanted.keys() <= found.keys()
    assert all(torch.equal(found[key], one.contiguous()) for key, one in wanted.items())
    back = imported(tmp_path, name)
    assert back.keys() == ours.keys()
    assert all((array.shape, array.tobytes()) == (back[key].shape, back[key].tobytes()) for key, array in ours.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A tensor of the real size, that nobody may read."""

    dtype: str
    shape: tuple[int, ...]

    def grain(self, dim: int) -> int:
        return self.shape[dim]

    def read_into(self, box: Box, out: Raw) -> None:
        raise AssertionError(f"read {box} of {out.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What params.json and config.json of the two say."""

    experts: int
    moe_every: int
    layers: int = 48
    hidden: int = 5120
    expert_width: int = 8192
    dense_width: int = 16384
    kv_rows: int = 1024
    vocab: int = 202048


CONFIGS = {"scout": Config(experts=16, moe_every=1), "maverick": Config(experts=128, moe_every=2)}
VISION_LAYERS, VISION_WIDTH, VISION_MLP = 34, 1408, 5632


def meta_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, width, dense = config.hidden, config.expert_width, config.dense_width
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab, hidden),
        "norm.weight": (hidden,),
        "output.weight": (config.vocab, hidden),
        "vision_projection.weight": (hidden, 4096),
        "vision_embeddings.vision_adapter.mlp.c_fc.weight": (4096, VISION_MLP),
        "vision_embeddings.vision_adapter.mlp.c_proj.weight": (4096, 4096),
        "vision_embeddings.vision_encoder.class_embedding": (VISION_WIDTH,),
        "vision_embeddings.vision_encoder.positional_embedding_vlm": (577, VISION_WIDTH),
        "vision_embeddings.vision_encoder.conv1._linear.weight": (VISION_WIDTH, 3 * 14 * 14),
    }
    for number in range(config.layers):
        layer, ffn = f"layers.{number}", f"layers.{number}.feed_forward"
        shapes[f"{layer}.attention.wqkv.weight"] = (hidden + 2 * config.kv_rows, hidden)
        shapes[f"{layer}.attention.wqkv.layer_norm_weight"] = (hidden,)
        shapes[f"{layer}.attention.wo.weight"] = (hidden, hidden)
        if (number + 1) % config.moe_every:
            shapes[f"{ffn}.mlp.layer_norm_weight"] = (hidden,)
            shapes[f"{ffn}.mlp.fc1_weight"] = (2 * dense, hidden)
            shapes[f"{ffn}.mlp.fc2_weight"] = (hidden, dense)
            continue
        shapes[f"{ffn}.norm.weight"] = (hidden,)
        shapes[f"{ffn}.router_DE"] = (hidden, config.experts)
        shapes[f"{ffn}.experts.moe_w_in_eD_F"] = (config.experts * hidden, width)
        shapes[f"{ffn}.experts.moe_w_swiglu_eD_F"] = (config.experts * hidden, width)
        shapes[f"{ffn}.experts.moe_w_out_eF_D"] = (config.experts * width, hidden)
        shapes[f"{ffn}.w_in_shared_FD.weight"] = (width, hidden)
        shapes[f"{ffn}.w_swiglu_FD.weight"] = (width, hidden)
        shapes[f"{ffn}.w_out_shared_DF.weight"] = (hidden, width)
    encoder = "vision_embeddings.vision_encoder"
    for part in ("weight", "bias"):
        shapes[f"{encoder}.ln_pre.{part}"] = shapes[f"{encoder}.ln_post.{part}"] = (VISION_WIDTH,)
    for number in range(VISION_LAYERS):
        block = f"{encoder}.transformer.resblocks.{number}"
        for name, rows, columns in (
            *((f"attn.w{one}", VISION_WIDTH, VISION_WIDTH) for one in "qkvo"),
            ("mlp.c_fc", VISION_MLP, VISION_WIDTH),
            ("mlp.c_proj", VISION_WIDTH, VISION_MLP),
        ):
            shapes[f"{block}.{name}.weight"], shapes[f"{block}.{name}.bias"] = (rows, columns), (rows,)
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[f"{block}.{name}"] = (VISION_WIDTH,)
    return shapes


def megatron_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, width, dense = config.hidden, config.expert_width, config.dense_width
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.embedding.word_embeddings.weight": (config.vocab, hidden),
        "language_model.decoder.final_layernorm.weight": (hidden,),
        "language_model.output_layer.weight": (config.vocab, hidden),
        "vision_projection.encoder.weight": (hidden, 4096),
        "vision_model.adapter.mlp.encoder.linear_fc1.weight": (4096, VISION_MLP),
        "vision_model.adapter.mlp.encoder.linear_fc2.weight": (4096, 4096),
        "vision_model.class_token": (1, 1, VISION_WIDTH),
        "vision_model.position_embeddings.weight": (577, VISION_WIDTH),
        "vision_model.conv1._linear.weight": (VISION_WIDTH, 3 * 14 * 14),
    }
    for number in range(config.layers):
        layer = f"language_model.decoder.layers.{number}"
        shapes[f"{layer}.self_attention.linear_qkv.weight"] = (hidden + 2 * config.kv_rows, hidden)
        shapes[f"{layer}.self_attention.linear_qkv.layer_norm_weight"] = (hidden,)
        shapes[f"{layer}.self_attention.linear_proj.weight"] = (hidden, hidden)
        if (number + 1) % config.moe_every:
            shapes[f"{layer}.mlp.linear_fc1.layer_norm_weight"] = (hidden,)
            shapes[f"{layer}.mlp.linear_fc1.weight"] = (2 * dense, hidden)
            shapes[f"{layer}.mlp.linear_fc2.weight"] = (hidden, dense)
            continue
        shapes[f"{layer}.pre_mlp_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.router.weight"] = (config.experts, hidden)
        shapes[f"{layer}.mlp.shared_experts.linear_fc1.weight"] = (2 * width, hidden)
        shapes[f"{layer}.mlp.shared_experts.linear_fc2.weight"] = (hidden, width)
        for expert in range(config.experts):
            shapes[f"{layer}.mlp.experts.linear_fc1.weight{expert}"] = (2 * width, hidden)
            shapes[f"{layer}.mlp.experts.linear_fc2.weight{expert}"] = (hidden, width)
    for part in ("weight", "bias"):
        shapes[f"vision_model.ln_pre.{part}"] = shapes[f"vision_model.ln_post.{part}"] = (VISION_WIDTH,)
    for number in range(VISION_LAYERS):
        layer = f"vision_model.decoder.layers.{number}"
        for name, rows, columns in (
            ("self_attention.linear_qkv", 3 * VISION_WIDTH, VISION_WIDTH),
            ("self_attention.linear_proj", VISION_WIDTH, VISION_WIDTH),
            ("mlp.linear_fc1", VISION_MLP, VISION_WIDTH),
            ("mlp.linear_fc2", VISION_WIDTH, VISION_MLP),
        ):
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = (rows, columns), (rows,)
        for name in ("self_attention.linear_qkv", "mlp.linear_fc1"):
            shapes[f"{layer}.{name}.layer_norm_weight"] = shapes[f"{layer}.{name}.layer_norm_bias"] = (VISION_WIDTH,)
    return shapes


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize(("name", "shapes"), [("llama4-meta", meta_shapes), ("llama4-megatron", megatron_shapes)])
def test_every_tensor_of_a_real_model_has_one_place_of_the_shape_that_the_other_side_has(
    model: str, name: str, shapes: object
) -> None:
    """Each element has one place: the sizes add up to the same, and the way back gives what there was."""
    assert callable(shapes)
    ours: dict[str, Tensor] = {
        f"model/{one.name}": Shape(dtype="bfloat16", shape=one.shape) for one in named_inventory(model).tensors
    }
    the_map = named_map(name)
    made = the_map.apply(ours)
    assert {key: one.shape for key, one in made.items()} == shapes(CONFIGS[model])
    elements = [sum(int(np.prod(one.shape)) for one in side.values()) for side in (ours, made)]
    assert elements[0] == elements[1]
    theirs: dict[str, Tensor] = {key: Shape(dtype=one.dtype, shape=one.shape) for key, one in made.items()}
    back = the_map.inverse().apply(theirs)
    assert {key: one.shape for key, one in back.items()} == {key: one.shape for key, one in ours.items()}


def test_what_meta_files_hold_beside_weights_stays_behind() -> None:
    one = chunked(np.zeros((2, 2), np.float32))
    names = ("rope.freqs", "layers.3.feed_forward.running_gate_stats_3E", "layers.0.attention.wo._extra_state")
    assert named_map("llama4-meta").inverse().apply(dict.fromkeys(names, one)) == {}


def test_without_the_router_nobody_can_tell_experts_apart() -> None:
    one = chunked(np.zeros((6, 2), np.float32))
    name = "layers.0.feed_forward.experts.moe_w_out_eF_D"
    with pytest.raises(Invalid, match="expected a tensor that tells the size 'experts'") as caught:
        named_map("llama4-meta").inverse().apply({name: one})
    assert "--size experts=N" in caught.value.hint
    (back,) = named_map("llama4-meta", {"experts": 3}).inverse().apply({name: one}).values()
    assert back.shape == (3, 2, 2)
