"""Inventories from a `config.json` are those that ship with the package, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.spec.fit import misfits
from behemoth.spec.llama4 import decode_config
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Tensor, named_inventory
from behemoth.spec.recipe import DEFAULT
from behemoth.spec.safetensors_header import inventory_of_shapes

SCOUT = {
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "vocab_size": 202048,
    "rope_theta": 500000.0,
}
CONFIGS = {
    "scout": SCOUT,
    "maverick": {**SCOUT, "num_local_experts": 128, "interleave_moe_layer_step": 2},
    "behemoth-ref": {
        **SCOUT,
        "hidden_size": 16384,
        "intermediate_size": 26624,
        "intermediate_size_mlp": 53248,
        "num_hidden_layers": 88,
        "num_attention_heads": 128,
    },
}
TOY = {
    "hidden_size": 8,
    "intermediate_size": 6,
    "intermediate_size_mlp": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_local_experts": 2,
    "vocab_size": 12,
    "num_key_value_heads": None,
    "head_dim": None,
}


VISION = {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096}
"""Of all published models; the rest are the defaults of transformers."""


def multimodal(text: Mapping[str, object], **fields: object) -> bytes:
    config = {"model_type": "llama4", "text_config": text, "vision_config": VISION, **fields}
    return json.dumps(config).encode()


def toy(**fields: object) -> dict[str, Tensor]:
    data = json.dumps({"model_type": "llama4_text", **TOY, **fields}).encode()
    return {tensor.name: tensor for tensor in decode_config(data, source="config.json").tensors}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configuration_gives_the_inventory_that_ships_with_its_vision_part(name: str) -> None:
    shipped, found = named_inventory(name), decode_config(multimodal(CONFIGS[name]), source="config.json")
    assert {tensor.name: tensor for tensor in found.tensors} == {tensor.name: tensor for tensor in shipped.tensors}
    assert (found.num_experts, found.num_layers) == (shipped.num_experts, shipped.num_layers)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_names_and_shapes_alone_give_the_inventory_that_ships_with_its_vision_part(name: str) -> None:
    shipped = named_inventory(name)
    found = inventory_of_shapes({tensor.name: tensor.shape for tensor in shipped.tensors}, source="index")
    assert {tensor.name: tensor for tensor in found.tensors} == {tensor.name: tensor for tensor in shipped.tensors}
    assert found.num_experts == shipped.num_experts


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configuration_without_what_transformers_leaves_out_means_the_same(name: str) -> None:
    """`save_pretrained` writes of a nested configuration only what is not the default, which is Scout's."""
    told = {field: size for field, size in CONFIGS[name].items() if size != SCOUT[field]}
    brief, full = (decode_config(multimodal(text), source="config.json") for text in (told, CONFIGS[name]))
    assert brief == full


def test_sizes_of_a_vision_tower_follow_its_configuration_and_the_defaults_of_transformers() -> None:
    def tower(**vision: object) -> dict[str, tuple[int, ...]]:
        found = decode_config(multimodal(TOY, vision_config=vision or None), source="config.json")
        return {tensor.name: tensor.shape for tensor in found.tensors if not tensor.name.startswith("language_model.")}

    plain = tower()
    assert plain["vision_model.positional_embedding_vlm"] == (1025, 768)
    assert plain["vision_model.patch_embedding.linear.weight"] == (768, 588)
    assert plain["multi_modal_projector.linear_1.weight"] == (8, 7680)
    own = tower(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_channels=1,
        image_size=[32, 48],
        patch_size=[8, 16],
    )
    assert own["vision_model.positional_embedding_vlm"] == (13, 12)
    assert own["vision_model.patch_embedding.linear.weight"] == (12, 128)
    assert own["vision_model.model.layers.1.mlp.fc1.weight"] == (20, 12)
    assert own["vision_model.vision_adapter.mlp.fc1.weight"] == (4096, 20)
    assert len(own) == 7 + 2 * 16 + 3


def test_any_number_of_ranks_may_cut_a_vocabulary() -> None:
    found = decode_config(json.dumps({"model_type": "llama4_text", **TOY, "vocab_size": 13}).encode(), source="c")
    assert list(misfits(found, Mesh(tp=2, ep=2), DEFAULT)) == []


def test_a_text_model_has_no_prefix_and_the_defaults_of_transformers() -> None:
    tensors = toy()
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (8, 8)  # as many as heads of 8 / 4
    assert tensors["model.layers.2.feed_forward.experts.gate_up_proj"].shape == (2, 8, 12)
    assert tensors["lm_head.weight"].stage == "last"
    assert not any(name.endswith(".bias") for name in tensors)


def test_layers_with_experts_are_those_that_the_configuration_names() -> None:
    tensors = toy(moe_layers=[1])
    with_experts = [layer for layer in range(3) if f"model.layers.{layer}.feed_forward.router.weight" in tensors]
    assert with_experts == [1]
    assert tensors["model.layers.0.feed_forward.down_proj.weight"].shape == (8, 10)


@pytest.mark.parametrize(
    "fields",
    [
        {"moe_layers": []},
        {"interleave_moe_layer_step": 0, "moe_layers": []},
        {"interleave_moe_layer_step": 0, "num_local_experts": 0},
        {"interleave_moe_layer_step": 4},
        {"moe_layers": [3]},
    ],
)
def test_a_model_without_layers_of_experts_is_dense(fields: dict[str, object]) -> None:
    """Three layers, and no stack of experts to spread."""
    found = decode_config(json.dumps({"model_type": "llama4_text", **TOY, **fields}).encode(), source="c")
    assert found.num_experts == 0
    assert not any("expert" in tensor.name for tensor in found.tensors)
    assert [reason for _, reason in misfits(found, Mesh(dp=2, ep=2), DEFAULT)] == [
        "expected 1 for a model without experts, got 2"
    ]


def test_tied_heads_are_saved_once_and_biases_where_there_are_some() -> None:
    tensors = toy(tie_word_embeddings=True, attention_bias=True)
    assert "lm_head.weight" not in tensors
    assert len(tensors["model.layers.0.self_attn.q_proj.bias"].cuts) == 1
    assert tensors["model.layers.0.self_attn.o_proj.bias"].cuts == ()
    tied = decode_config(multimodal(TOY, tie_word_embeddings=True), source="config.json")
    assert "language_model.lm_head.weight" not in {tensor.name for tensor in tied.tensors}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"model_type": "mixtral"}', "expected model_type llama4 with a text_config, or llama4_text, got 'mixtral'"),
        (b'{"model_type": "llama4"}', "got no text_config"),
        (multimodal({**TOY, "hidden_size": 0}), "hidden_size"),
        (multimodal({**TOY, "hidden_size": 1}), r"config\.json: expected a hidden_size of at least 4 .*got 1"),
        (multimodal({**TOY, "vocab_size": None}), "vocab_size"),
        (multimodal(TOY, vision_config={"image_size": []}), "image_size"),
        (multimodal({**TOY, "interleave_moe_layer_step": 0}), "expected moe_layers beside .* of 0, got none and 2"),
        (multimodal({**TOY, "num_local_experts": 0}), r"num_local_experts of at least 1 for layers with .* \(0, "),
        (b"[]", r"config\.json: expected the config\.json of a Llama 4, got"),
    ],
)
def test_another_configuration_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        decode_config(data, source="config.json")


@given(
    fields=st.dictionaries(
        st.sampled_from([*TOY, "head_dim", "moe_layers", "model_type"]),
        st.integers(-3, 6) | st.none() | st.just("x") | st.lists(st.integers(-1, 5), max_size=3),
    )
)
def test_any_configuration_is_read_or_refused(fields: dict[str, object]) -> None:
    data = json.dumps({"model_type": "llama4_text", **TOY, **fields}).encode()
    with suppress(Invalid):
        assert all(tensor.num_params >= 1 for tensor in decode_config(data, source="c").tensors)
