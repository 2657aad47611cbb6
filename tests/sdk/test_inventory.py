"""A torch module on the meta device becomes an inventory file that plans and mesh checks understand."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from behemoth.app.inventory_file import read_inventory
from behemoth.base.errors import Invalid
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.plan import prove_coverage
from behemoth.checkpoint.rank_bytes import rank_bytes
from behemoth.checkpoint.recipe_change import recipe_change
from behemoth.sdk.inventory import module_inventory
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Cut, Inventory, decode_inventory, named_inventory
from behemoth.spec.recipe import Recipe

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


class Block(torch.nn.Module):
    def __init__(self, *, has_experts: bool) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8, bias=False)
        self.up = torch.nn.Linear(8, 32)
        self.experts = torch.nn.Parameter(torch.empty(4, 8, 12)) if has_experts else None


class Decoder(torch.nn.Module):
    def __init__(self, *, is_tied: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(100, 8)
        self.h = torch.nn.ModuleList(Block(has_experts=number % 2 == 1) for number in range(6))
        self.head = torch.nn.Linear(8, 100, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight


RULES = {"embed.weight": "tp0", "h.*.up.*": "tp0", "h.*.experts": "ep0,etp2_packed2", "head.*": "tp0"}


def written(**options: object) -> bytes:
    with torch.device("meta"):
        module = Decoder(is_tied=bool(options.pop("is_tied", False)))
    return module_inventory(module, **options)  # type: ignore[arg-type]


def decoded(**options: object) -> Inventory:
    return decode_inventory(written(**options), source="module")


def test_a_module_without_memory_becomes_a_file_of_some_lines_that_can_be_planned(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_bytes(written(shard=RULES, layers="h.{}", last=["head.*"], experts=4))
    assert len(json.loads(file.read_bytes())["tensors"]) == 6
    inventory = read_inventory(file, lambda path, limit: path.read_bytes()[:limit])
    assert inventory.num_params == sum(one.numel() for one in Decoder().parameters())
    assert (inventory.num_layers, inventory.num_experts) == (6, 4)
    tensors = {tensor.name: tensor for tensor in inventory.tensors}
    assert sorted(name for name in tensors if "experts" in name) == [f"h.{number}.experts" for number in (1, 3, 5)]
    assert tensors["h.3.experts"].cuts == (Cut(dim=0, axis="ep"), Cut(dim=2, axis="etp", packed=(1, 1)))
    assert (tensors["head.weight"].stage, tensors["embed.weight"].stage) == ("last", "first")
    mesh = Mesh(tp=2, dp=2, pp=3, ep=2, etp=2, edp=1)
    prove_coverage(model_layout(inventory, Recipe(), mesh))


def test_tied_parameters_count_once_and_what_has_no_rule_is_whole_on_its_stage() -> None:
    inventory = decoded(is_tied=True)
    assert [tensor.name for tensor in inventory.tensors].count("embed.weight") == 1
    assert "head.weight" not in {tensor.name for tensor in inventory.tensors}
    assert all(tensor.cuts == () for tensor in inventory.tensors)
    # `h.N` is how GPT-2 names its layers: they are known without `layers=`.
    assert {tensor.layer for tensor in inventory.tensors if tensor.name.startswith("h.")} == set(range(6))
    assert [tensor.name for tensor in inventory.tensors if tensor.stage == "first"] == ["embed.weight"]


def test_names_of_the_llama_4_family_need_no_rules() -> None:
    shipped = named_inventory("scout")

    class Shapes:
        def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
            return [(one.name, torch.empty(one.shape, device="meta")) for one in shipped.tensors]

        def named_buffers(self, *, remove_duplicate: bool) -> list[tuple[str, torch.Tensor]]:  # noqa: ARG002
            return []

        def state_dict(self) -> dict[str, torch.Tensor]:
            return dict(self.named_parameters())

    data = module_inventory(Shapes(), experts=16)
    found = decode_inventory(data, source="module")
    assert {one.name: one for one in found.tensors} == {one.name: one for one in shipped.tensors}
    assert len(data) < 200_000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shard": {"h.*.down.*": "tp0"}}, r"shard: expected patterns of the module's tensors, got \['h.*.down.*"),
        ({"last": ["lm_head"]}, r"last: expected patterns .* got \['lm_head'\]"),
        ({"layers": "layers.{}"}, "layers: expected the beginning of some tensor's name, got 'layers.{}'"),
        ({"layers": "h"}, "layers: expected one {} for the number, got 'h'"),
        ({"shard": {"embed.weight": "tp7"}}, "module: embed.weight: expected a shard rule"),
    ],
)
def test_what_names_nothing_or_does_not_fit_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        written(**options)
    with pytest.raises(Invalid, match="module: expected parameters, got none"):
        module_inventory(torch.nn.Module())


class Router(torch.nn.Module):
    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(8, 4, bias=False)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("bias", bias)
        self.register_buffer("angles", torch.zeros(1 << 20), persistent=False)


def test_buffers_of_the_state_dict_keep_their_types_and_have_no_optimizer() -> None:
    module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(Router(torch.zeros(4).double()) for _ in range(2))})
    data = module_inventory(module, layers="layers.{}")
    assert {one["name"]: one.get("buffer") for one in json.loads(data)["tensors"]} == {
        "layers.{}.gate.weight": None,
        "layers.{}.norm.weight": None,
        "layers.{}.norm.bias": None,
        "layers.{}.norm.running_mean": "float32",
        "layers.{}.norm.running_var": "float32",
        "layers.{}.norm.num_batches_tracked": "int64",
        "layers.{}.bias": "float64",
    }
    inventory = decode_inventory(data, source="module")
    assert {one.name for one in inventory.tensors} == module.state_dict().keys()
    assert inventory.num_params == sum(one.numel() for one in module.parameters())
    layout = model_layout(inventory, Recipe(shares="rows", weights="bfloat16"), Mesh(dp=4, edp=4))
    prove_coverage(layout)
    of_buffers = {one.name: one for one in layout.arrays if "norm.num_batches" in one.name or "0.bias" in one.name}
    assert {name: one.dtype for name, one in of_buffers.items()} == {
        "buffer/layers.0.bias": "float64",
        "buffer/layers.0.norm.num_batches_tracked": "int64",
        "buffer/layers.1.norm.num_batches_tracked": "int64",
    }
    assert of_buffers["buffer/layers.0.bias"].flat_over is None


def test_a_buffer_that_is_saved_under_one_of_its_names_is_there_and_one_that_is_under_several_is_there_once() -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(3)))
    angles = torch.zeros(8)
    for number, is_saved in enumerate((False, True, True)):
        module[number].register_buffer("angles", angles, persistent=is_saved)
    found = decode_inventory(module_inventory(module), source="module")
    assert [one.name for one in found.tensors if one.buffer is not None] == ["1.angles"]


def test_buffers_count_once_on_each_rank_and_stay_when_the_recipe_changes() -> None:
    module = Router(torch.zeros(4).bfloat16())
    inventory = decode_inventory(module_inventory(module), source="module")
    mesh, saved, wanted = Mesh(), Recipe(), Recipe(weights="bfloat16", master="none", exp_avg="none", exp_avg_sq="none")
    held = rank_bytes(inventory, mesh, recipe=wanted)[0]
    assert held.weights_bytes == 2 * inventory.num_params + 4 * 4 + 4 * 4 + 8 + 2 * 4
    assert held.optimizer_bytes == 0
    intake = recipe_change(inventory, saved, wanted)
    names = {one.name for one in model_layout(inventory, saved, mesh).arrays if one.name.startswith("buffer/")}
    assert len(names) == 4
    assert not names & intake.convert.keys()
    assert not any(fnmatchcase(name, pattern) for name in names for pattern in (*intake.extra, *intake.missing))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (torch.nn.Embedding(0, 4), r"module: weight: expected a parameter with elements, got shape \(0, 4\)"),
        (torch.nn.LazyLinear(4), "module: weight: expected a parameter with a shape, got one that is not initialized"),
        (Router(torch.empty(0)), r"module: bias: expected a buffer with elements, got shape \(0,\)"),
        (
            Router(torch.zeros(2, dtype=torch.float8_e4m3fnuz)),
            "module: bias: expected a buffer of a type .*, got float8_e4m3fnuz",
        ),
    ],
)
def test_a_tensor_that_has_nothing_to_save_is_named(module: torch.nn.Module, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        module_inventory(module)
