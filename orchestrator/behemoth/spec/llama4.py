"""The inventory of a Llama 4 from its Hugging Face `config.json`: the language model, and the vision tower beside it.

Names and shapes are those of transformers' `Llama4ForConditionalGeneration` (model_type llama4: names below
`language_model.`, `vision_model.` and `multi_modal_projector.`) and `Llama4ForCausalLM` (llama4_text). Its q-k norm has
no parameters; experts are stacked, [E, in, out], gate and up side by side. Pure. Neighbour: `tensor_names`, for how
they are cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated

import msgspec

from behemoth.base.errors import Invalid
from behemoth.spec.model import Inventory, decode_model_json, inventory_of
from behemoth.spec.tensor_names import entry_of

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Named = tuple[str, tuple[int, ...]]


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that shapes follow from; a configuration has many more. The defaults are those of transformers'
    Llama4TextConfig, whose `save_pretrained` leaves out of a nested configuration what equals them."""

    hidden_size: _Size = 5120
    intermediate_size: _Size = 8192
    """Size in each expert, and in the shared one."""
    intermediate_size_mlp: _Size = 16384
    """Size in a layer without experts."""
    num_hidden_layers: _Layers = 48
    num_attention_heads: _Size = 40
    num_local_experts: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 16
    vocab_size: _Size = 202048
    num_key_value_heads: _Size | None = 8
    """null: as many as heads."""
    head_dim: _Size | None = 128
    """null: hidden_size / num_attention_heads."""
    interleave_moe_layer_step: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 1
    """0 in models that name their layers with experts, or have none."""
    moe_layers: list[Annotated[int, msgspec.Meta(ge=0, lt=10_000)]] | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False


_Side = _Size | Annotated[list[_Size], msgspec.Meta(min_length=1, max_length=2)]


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """As TextConfig, of the vision tower. All fields have the defaults of transformers, where it is never left out."""

    hidden_size: _Size = 768
    intermediate_size: _Size = 5632
    num_hidden_layers: _Layers = 34
    num_channels: _Size = 3
    image_size: _Side = 448
    patch_size: _Side = 14
    projector_input_dim: _Size = 4096
    projector_output_dim: _Size = 4096
    vision_output_dim: _Size = 7680


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    model_type: str
    text_config: TextConfig | None = None
    vision_config: VisionConfig | None = None
    tie_word_embeddings: bool = False


def decode_config(data: bytes, *, source: str) -> Inventory:
    """Raises Invalid that names `source` for another model and for sizes that cannot be."""
    what = "the config.json of a Llama 4"
    config = decode_model_json(data, _Config, what=what, source=source)
    match config.model_type:
        case "llama4" if config.text_config is not None:
            text, prefix = config.text_config, "language_model."
        case "llama4_text":
            text, prefix = decode_model_json(data, TextConfig, what=what, source=source), ""
        case other:
            got = "no text_config" if other == "llama4" else repr(other)
            raise Invalid(
                f"{source}: expected model_type llama4 with a text_config, or llama4_text, got {got}",
                hint="name an inventory of your own, or the safetensors index of the model",
                code="inventory-format",
            )
    if text.head_dim is None and text.hidden_size < text.num_attention_heads:
        raise Invalid(
            f"{source}: expected a hidden_size of at least {text.num_attention_heads} (num_attention_heads), got "
            f"{text.hidden_size}",
            hint="or name head_dim",
            code="inventory-format",
        )
    with_experts = _layers_with_experts(text, source)
    named = list(_tensors(text, with_experts, prefix, is_tied=text.tie_word_embeddings or config.tie_word_embeddings))
    if config.model_type == "llama4":
        named += _vision(config.vision_config or VisionConfig(), text.hidden_size)
    entries = [entry_of(name, shape) for name, shape in named]
    return inventory_of(entries, num_experts=text.num_local_experts if with_experts else 0, source=source)


def _layers_with_experts(text: TextConfig, source: str) -> frozenset[int]:
    """Those that are named, else each `interleave_moe_layer_step`-th one. A model without any is dense."""
    layers, step, num = text.num_hidden_layers, text.interleave_moe_layer_step, text.num_local_experts
    if text.moe_layers is None and step == 0 and num > 0:
        raise Invalid(
            f"{source}: expected moe_layers beside an interleave_moe_layer_step of 0, got none and {num} experts",
            hint="name the layers with experts; [] where there are none",
            code="inventory-format",
        )
    named = range(step - 1, layers, step) if text.moe_layers is None and step else text.moe_layers or ()
    found = frozenset(layer for layer in named if layer < layers)
    if found and num == 0:
        raise Invalid(
            f"{source}: expected num_local_experts of at least 1 for layers with experts ({min(found)}, ...), got 0",
            hint="a model without experts has an interleave_moe_layer_step of 0, or moe_layers []",
            code="inventory-format",
        )
    return found


def _tensors(text: TextConfig, with_experts: Collection[int], prefix: str, *, is_tied: bool) -> Iterator[_Named]:
    yield f"{prefix}model.embed_tokens.weight", (text.vocab_size, text.hidden_size)
    for layer in range(text.num_hidden_layers):
        below = f"{prefix}model.layers.{layer}"
        yield f"{below}.input_layernorm.weight", (text.hidden_size,)
        yield f"{below}.post_attention_layernorm.weight", (text.hidden_size,)
        yield from _attention(text, f"{below}.self_attn")
        if layer in with_experts:
            yield from _experts(text, f"{below}.feed_forward")
        else:
            yield from _mlp(text.hidden_size, text.intermediate_size_mlp, f"{below}.feed_forward")
    yield f"{prefix}model.norm.weight", (text.hidden_size,)
    if not is_tied:
        yield f"{prefix}lm_head.weight", (text.vocab_size, text.hidden_size)


def _attention(text: TextConfig, below: str) -> Iterator[_Named]:
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    queries = text.num_attention_heads * head
    keys = (text.num_key_value_heads or text.num_attention_heads) * head
    for name, rows, columns in (
        ("q_proj", queries, text.hidden_size),
        ("k_proj", keys, text.hidden_size),
        ("v_proj", keys, text.hidden_size),
        ("o_proj", text.hidden_size, queries),
    ):
        yield f"{below}.{name}.weight", (rows, columns)
        if text.attention_bias:
            yield f"{below}.{name}.bias", (rows,)


def _experts(text: TextConfig, below: str) -> Iterator[_Named]:
    num, outer, inner = text.num_local_experts, text.hidden_size, text.intermediate_size
    yield f"{below}.router.weight", (num, outer)
    yield f"{below}.experts.gate_up_proj", (num, outer, 2 * inner)
    yield f"{below}.experts.down_proj", (num, inner, outer)
    yield from _mlp(outer, inner, f"{below}.shared_expert")


def _vision(vision: VisionConfig, text_size: int) -> Iterator[_Named]:
    """The tower, its adapter behind the pixel shuffle, and the projector into the language model."""
    size, inner = vision.hidden_size, vision.intermediate_size
    (height, width), (rows, columns) = _sides(vision.image_size), _sides(vision.patch_size)
    yield "vision_model.class_embedding", (size,)
    yield "vision_model.positional_embedding_vlm", ((height // rows) * (width // columns) + 1, size)
    yield "vision_model.patch_embedding.linear.weight", (size, vision.num_channels * rows * columns)
    yield from _affine("vision_model.layernorm_pre", size)
    yield from _affine("vision_model.layernorm_post", size)
    for layer in range(vision.num_hidden_layers):
        below = f"vision_model.model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from _affine(f"{below}.self_attn.{name}", size, size)
        yield from _affine(f"{below}.mlp.fc1", inner, size)
        yield from _affine(f"{below}.mlp.fc2", size, inner)
        yield from _affine(f"{below}.input_layernorm", size)
        yield from _affine(f"{below}.post_attention_layernorm", size)
    output = vision.projector_output_dim
    yield "vision_model.vision_adapter.mlp.fc1.weight", (vision.projector_input_dim, inner)
    yield "vision_model.vision_adapter.mlp.fc2.weight", (output, output)
    yield "multi_modal_projector.linear_1.weight", (text_size, vision.vision_output_dim)


def _affine(name: str, *shape: int) -> Iterator[_Named]:
    """A weight and a bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _sides(size: int | list[int]) -> tuple[int, int]:
    """Height and width; one number is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _mlp(outer: int, inner: int, below: str) -> Iterator[_Named]:
    yield f"{below}.gate_proj.weight", (inner, outer)
    yield f"{below}.up_proj.weight", (inner, outer)
    yield f"{below}.down_proj.weight", (outer, inner)
