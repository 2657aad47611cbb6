"""Files that `spec.model.inventory` may name: each form is told apart, and read without its weights."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from behemoth.app.inventory_file import read_inventory
from behemoth.base.errors import Invalid, NotFound
from behemoth.spec.model import stage_of
from behemoth.spec.safetensors_header import LENGTH_BYTES, decode_header, header_bytes
from behemoth_cli.context import read_file
from spec.test_llama4 import TOY

ARRAYS = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.feed_forward.experts.gate_up_proj": (2, 8, 12),
    "model.layers.1.input_layernorm.weight": (8,),
    "lm_head.weight": (12, 8),
}


def save_index(folder: Path) -> Path:
    """Two files and their index, as transformers writes them."""
    names = sorted(ARRAYS)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: np.ones(ARRAYS[name], dtype=np.float16) for name in held}, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, held in files.items() for name in held}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def read_counted(path: Path, max_bytes: int, counts: dict[str, int]) -> bytes:
    data = read_file(path, max_bytes)
    counts[path.name] = max(counts.get(path.name, 0), len(data))
    return data


def test_an_index_gives_the_tensors_of_its_files_and_reads_no_weight(tmp_path: Path) -> None:
    index, counts = save_index(tmp_path), dict[str, int]()
    inventory = read_inventory(index, lambda path, max_bytes: read_counted(path, max_bytes, counts))
    assert {tensor.name: tensor.shape for tensor in inventory.tensors} == ARRAYS
    assert (inventory.num_experts, inventory.num_layers) == (2, 2)
    of = {tensor.name: tensor for tensor in inventory.tensors}
    assert [cut.axis for cut in of["model.layers.0.feed_forward.experts.gate_up_proj"].cuts] == ["ep", "etp"]
    for file in tmp_path.glob("*.safetensors"):
        assert counts[file.name] == header_bytes(file.read_bytes()[:LENGTH_BYTES], source="") < file.stat().st_size


def test_a_single_safetensors_file_is_an_inventory(tmp_path: Path) -> None:
    save_index(tmp_path)
    inventory = read_inventory(tmp_path / "model-00001-of-00002.safetensors", read_file)
    assert {tensor.name for tensor in inventory.tensors} == set(sorted(ARRAYS)[:2])


def saved_tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: np.ones(shape, dtype=np.float16) for name, shape in shapes.items()}, path)
    return path


def experts_apart(num: int, *, layer: int = 0) -> dict[str, tuple[int, ...]]:
    """As Mixtral, DeepSeek and Qwen name them, with a scale beside one matrix."""
    below = f"model.layers.{layer}.mlp.experts"
    shapes: dict[str, tuple[int, ...]] = {
        "gate_proj.weight": (12, 8),
        "down_proj.weight": (8, 12),
        "down_proj.weight_scale_inv": (1, 1),
    }
    return {f"{below}.{expert}.{name}": shape for expert in range(num) for name, shape in shapes.items()}


def test_experts_that_are_a_tensor_each_become_stacks_that_ep_cuts(tmp_path: Path) -> None:
    shared = {"model.layers.0.mlp.shared_experts.gate_proj.weight": (12, 8)}
    inventory = read_inventory(saved_tensors(tmp_path / "m.safetensors", experts_apart(12) | shared), read_file)
    of = {tensor.name: (tensor.shape, [(cut.dim, cut.axis) for cut in tensor.cuts]) for tensor in inventory.tensors}
    below = "model.layers.0.mlp.experts"
    assert inventory.num_experts == 12
    assert of == {
        f"{below}.gate_proj.weight": ((12, 12, 8), [(0, "ep"), (1, "etp")]),
        f"{below}.down_proj.weight": ((12, 8, 12), [(0, "ep"), (2, "etp")]),
        f"{below}.down_proj.weight_scale_inv": ((12, 1, 1), [(0, "ep")]),
        "model.layers.0.mlp.shared_experts.gate_proj.weight": ((12, 8), [(0, "tp")]),
    }


@pytest.mark.parametrize(
    ("layers", "last"),
    [
        ("model.layers", "model.norm.weight"),
        ("model.language_model.layers", "model.language_model.norm.weight"),
        ("model.decoder.layers", "model.decoder.final_layer_norm.bias"),
        ("gpt_neox.layers", "embed_out.weight"),
        ("transformer.h", "transformer.ln_f.bias"),
        ("h", "ln_f.weight"),
        ("transformer.blocks", "transformer.norm_f.weight"),
    ],
)
def test_layers_of_other_models_are_spread_over_the_pipeline(tmp_path: Path, layers: str, last: str) -> None:
    """And what their vision towers or encoders number stands on the first stage, as in the Llama 4 family."""
    tower = "model.vision_tower.layers.3.w"
    names = [f"{layers}.{layer}.w" for layer in range(6)] + [last, tower, "first.weight"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (4,))
    inventory = read_inventory(saved_tensors(tmp_path / "m.safetensors", shapes), read_file)
    stages = {tensor.name: stage_of(tensor, inventory.num_layers, 3) for tensor in inventory.tensors}
    spread = {f"{layers}.{layer}.w": layer // 2 for layer in range(6)}
    assert stages == spread | {last: 2, tower: 0, "first.weight": 0}


@pytest.mark.parametrize(
    "odd",
    [
        experts_apart(3, layer=1),  # another number of experts in another layer
        {"model.layers.0.mlp.experts.5.gate_proj.weight": (12, 8)},  # 4 is missing
        {"model.layers.0.mlp.experts.gate_proj.weight": (4, 12, 8)},  # there is such a stack
        {"model.layers.0.mlp.experts.3.gate_proj.weight": (12, 4)},  # another shape
    ],
)
def test_experts_of_which_no_stack_can_be_made_stay_tensors_of_their_own(
    tmp_path: Path, odd: dict[str, tuple[int, ...]]
) -> None:
    shapes = experts_apart(4) | odd
    inventory = read_inventory(saved_tensors(tmp_path / "m.safetensors", shapes), read_file)
    names = {tensor.name for tensor in inventory.tensors}
    assert {name for name in shapes if ".gate_proj." in name} <= names


def test_a_configuration_and_an_inventory_of_ones_own_are_told_apart(tmp_path: Path) -> None:
    config, own = tmp_path / "config.json", tmp_path / "own.json"
    config.write_text(json.dumps({"model_type": "llama4_text", **TOY}))
    own.write_text('{"format": 1, "experts": 0, "tensors": [{"name": "w", "shape": [4], "shard": "rep"}]}')
    assert read_inventory(config, read_file).num_layers == 3
    assert [tensor.name for tensor in read_inventory(own, read_file).tensors] == ["w"]


def test_an_index_of_a_missing_file_or_of_another_folder_is_refused(tmp_path: Path) -> None:
    index = save_index(tmp_path)
    document = json.loads(index.read_text())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match="model-00002-of-00002"):
        read_inventory(index, read_file)
    document["weight_map"]["lm_head.weight"] = "../model-00001-of-00002.safetensors"
    index.write_text(json.dumps(document))
    with pytest.raises(Invalid, match=r"lm_head.weight: expected the name of a file beside the index, got '\.\./model"):
        read_inventory(index, read_file)


def test_an_index_that_names_a_tensor_in_the_wrong_file_is_refused(tmp_path: Path) -> None:
    index = save_index(tmp_path)
    index.write_text(index.read_text().replace("model-00002", "model-00001"))
    with pytest.raises(Invalid, match=r"expected model\.layers.* in model-00001-of-00002\.safetensors"):
        read_inventory(index, read_file)


def test_stacks_of_different_heights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    stacks = {"a.experts.down_proj": np.ones((2, 3, 4)), "b.experts.down_proj": np.ones((3, 3, 4))}
    save_file(stacks, file)
    with pytest.raises(Invalid, match=r"stacks of equally many experts, got \[2, 3\]"):
        read_inventory(file, read_file)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "a header of 2 .. 16777216 bytes, got 0"),
        (struct.pack("<Q", 1 << 60), "got 1152921504606846976"),
        (struct.pack("<Q", 9) + b"{}", "expected a header of 17 bytes, got 10"),
        (struct.pack("<Q", 2) + b"[]", "expected a safetensors header, got"),
        (struct.pack("<Q", 15) + b'{"w":{"a": 1}} ', "expected a shape of w, got"),
        (struct.pack("<Q", 19) + b'{"w":{"shape":[0]}}', "expected a shape of w, got"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, data: bytes, text: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(data)
    with pytest.raises(Invalid, match=text):
        read_inventory(file, read_file)


@given(data=st.binary(max_size=60))
def test_any_header_is_read_or_refused(data: bytes) -> None:
    with suppress(Invalid):
        assert header_bytes(data[:LENGTH_BYTES], source="f") > LENGTH_BYTES
    with suppress(Invalid):
        assert all(min(shape, default=1) >= 1 for shape in decode_header(data, source="f").values())
