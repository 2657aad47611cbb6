"""How a tensor of the Llama 4 family is cut and where in the pipeline it stands, told from its Hugging Face name.

Data, so that inventories of any source (a configuration, the headers of safetensors files) follow the same rules as
those that ship with the package; a test compares them. Neighbours: `llama4`, `safetensors_header`.
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
_LAYER = re.compile(r"((?:language_model\.)?model\.layers\.)(\d{1,4})(\..+)")
_LAST = re.compile(r"(language_model\.)?(model\.norm|lm_head)\.weight")
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
