"""How a tensor of the Llama 4 family is cut and where in the pipeline it stands, told from its Hugging Face name.

Data, so that inventories of any source (a configuration, the headers of safetensors files) follow the same rules as
those that ship with the package; a test compares them. Other models' layers are known by name too, so that a pipeline
can be planned; how their tensors are cut is not. Neighbours: `llama4`, `safetensors_header`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from behemoth.spec.model import Stage, TensorEntry

_CUTS = (
    (r"experts\.gate_up_proj", "ep0,etp2_packed2"),
    (r"experts\.down_proj", "ep0,etp1"),
    (r"(embed_tokens|lm_head)\.weight", "tp0_padded"),
    (r"(linear_1|patch_embedding\.linear)\.weight", "tp0"),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)\.(weight|bias)", "tp0"),
    (r"(o_proj|down_proj|fc2)\.weight", "tp1"),
)
"""The end of a name, and its rule; what none fits is whole on every rank (norms, routers, biases behind a row cut)."""
_LAYER = re.compile(
    r"((?:(?:language_model\.)?model\.layers|model\.language_model\.layers|model\.decoder\.layers"
    r"|gpt_neox\.layers|(?:transformer\.)?h|transformer\.blocks)\.)(\d{1,4})(\..+)"
)
"""Names of layers: of the Llama 4 family and most others; of later vision models; of OPT; of GPT-NeoX; of GPT-2 and
Bloom, which are published without `transformer.`, and Falcon; of MPT and DBRX."""
_LAST = re.compile(
    r"(?:(?:language_model\.)?(?:model\.norm|lm_head)|model\.language_model\.norm|model\.decoder\.final_layer_norm"
    r"|gpt_neox\.final_layer_norm|embed_out|(?:transformer\.)?ln_f|transformer\.norm_f)\.(?:weight|bias)"
)
"""What follows the last layer, in the same order."""
_STACKED = re.compile(r"experts\.(gate_up|down)_proj$")


def entry_of(name: str, shape: Sequence[int]) -> TensorEntry:
    """The entry of an inventory. Layers of the language model are spread over the pipeline, the last norm and the head
    stand on the last stage, everything else (a vision tower, too) on the first."""
    shard = next((rule for end, rule in _CUTS if re.search(rf"(^|\.){end}$", name)), "rep")
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        number = int(layer[2])
        template = f"{layer[1]}{{}}{layer[3]}"
        return TensorEntry(name=template, shape=list(shape), shard=shard, layers=(number, number + 1, 1))
    stage: Stage = "last" if _LAST.fullmatch(name) else "first"
    return TensorEntry(name=name, shape=list(shape), shard=shard, stage=stage)


def is_stack_of_experts(name: str) -> bool:
    """Whether dim 0 of a tensor counts experts."""
    return _STACKED.search(name) is not None
