from __future__ import annotations

import json

import pytest

from behemoth.base.errors import Invalid
from behemoth.spec.decode import decode_document
from behemoth.spec.fit import misfits
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import (
    MODEL_NAMES,
    TensorEntry,
    decode_inventory,
    inventory_of,
    named_inventory,
)
from behemoth.spec.problem import InvalidRun
from behemoth.spec.recipe import DEFAULT
from behemoth.spec.run import require_fit
from spec.run_texts import document


@pytest.mark.parametrize(
    ("name", "num_tensors", "num_params", "num_experts", "num_layers"),
    [
        ("scout", 1133, 108_641_793_536, 16, 48),
        ("maverick", 1061, 401_583_781_376, 128, 48),
        ("behemoth-ref", 1613, 2_015_461_958_144, 16, 88),
        ("tiny-moe", 0, 0, 16, 0),
    ],
)
def test_a_named_model_has_its_published_size(
    name: str, num_tensors: int, num_params: int, num_experts: int, num_layers: int
) -> None:
    inventory = named_inventory(name)
    assert (len(inventory.tensors), inventory.num_params) == (num_tensors, num_params)
    assert (inventory.num_experts, inventory.num_layers) == (num_experts, num_layers)


def test_every_name_has_an_inventory() -> None:
    assert all(named_inventory(name).num_experts for name in MODEL_NAMES)
    with pytest.raises(Invalid, match="expected one of tiny-moe"):
        named_inventory("../x")


def test_an_axis_need_not_divide_a_dim_that_programs_pad() -> None:
    entries = [
        TensorEntry(name="embed", shape=[50257, 4], shard="tp0_padded128"),
        TensorEntry(name="head", shape=[511, 4], shard="tp0_padded"),
    ]
    inventory = inventory_of(entries, num_experts=0, source="toy")
    embed, head = (tensor.cuts[0] for tensor in inventory.tensors)
    assert list(misfits(inventory, Mesh(tp=8, edp=8), DEFAULT)) == []
    assert (embed.rows_of_rank(50257, 8), head.rows_of_rank(511, 8)) == (6400, 64)
    plain = inventory_of([TensorEntry(name="w", shape=[511, 4], shard="tp0")], num_experts=0, source="toy")
    assert [axis for axis, _ in misfits(plain, Mesh(tp=8, edp=8), DEFAULT)] == ["tp"]


def test_fused_queries_keys_and_values_are_parts_of_their_own_sizes() -> None:
    entry = TensorEntry(name="qkv", shape=[6144, 4], shard="tp0_packed4:1:1")
    inventory = inventory_of([entry], num_experts=0, source="toy")
    assert inventory.tensors[0].cuts[0].part_sizes(6144) == (4096, 1024, 1024)
    assert list(misfits(inventory, Mesh(tp=8, edp=8), DEFAULT)) == []
    assert [reason for _, reason in misfits(inventory, Mesh(tp=3, edp=3), DEFAULT)] == [
        "expected a divisor of 1024 (dim 0 of qkv), got 3"
    ]


def _file(**changes: object) -> bytes:
    tensor = {"name": "a.{}.w", "shape": [8, 4], "shard": "tp0", "layers": [0, 4, 2]}
    return json.dumps({"format": 1, "experts": 4, "tensors": [tensor], **changes}).encode()


def test_an_own_inventory_spreads_its_layers() -> None:
    inventory = decode_inventory(_file(), source="m.json")
    assert [(tensor.name, tensor.layer) for tensor in inventory.tensors] == [("a.0.w", 0), ("a.2.w", 2)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        _file(format=2),
        _file(experts=-1),
        _file(more=1),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "tp1"}]),
        _file(tensors=[{"name": "a", "shape": [7], "shard": "tp0_packed2"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "tp0_packed2_padded"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "tp0_packed4:1:1"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "tp0_packed4:0"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "tp0_padded0"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "dp0"}]),
        _file(tensors=[{"name": "a", "shape": [0], "shard": "rep"}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "rep", "layers": [0, 4, 1]}]),
        _file(tensors=[{"name": "a", "shape": [8], "shard": "rep"}] * 2),
    ],
)
def test_a_malformed_inventory_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(Invalid, match=r"^m\.json: "):
        decode_inventory(data, source="m.json")


def test_a_run_is_held_to_an_inventory_that_was_read_later() -> None:
    run = decode_document(document(model={"inventory": "m.json"}, mesh={"dp": 4, "ep": 4}))
    require_fit(run, decode_inventory(_file(), source="m.json"))
    with pytest.raises(InvalidRun, match=r"spec\.mesh\.ep: expected a divisor of the model's 3 experts, got 4"):
        require_fit(run, decode_inventory(_file(experts=3), source="m.json"))
