"""Parts of the toy that the whole could hide: shares of the optimizer, float8 scaling, arguments, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from behemoth.workloads.placement import FlatPiece, Placement
from behemoth.workloads.tiny_moe.config import HISTORY, Config, config_from
from behemoth.workloads.tiny_moe.fp8 import E4M3_MAX, Scales, cast_expert_input, cast_input, decode, encode
from behemoth.workloads.tiny_moe.groups import Group
from behemoth.workloads.tiny_moe.inventory import Held, inventory
from behemoth.workloads.tiny_moe.optimizer import Bucket

CPU = torch.device("cpu")


def share(size: int, index: int) -> Group:
    """A group that is only asked for a rank's place in it."""
    return Group(size=size, index=index, handle=None)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("numel", [1, 2, 5, 257, 1024])
def test_flat_pieces_cover_a_block_once_in_order(numel: int, size: int) -> None:
    pieces = [FlatPiece(numel=numel, size=size, index=index) for index in range(size)]
    covered = [element for piece in pieces for element in range(piece.start, piece.stop)]
    assert covered == list(range(numel))
    assert all(piece.stop - piece.start <= piece.quota for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("held", list(Held))
def test_packed_blocks_hold_the_piece_of_each_rank_and_zeros_behind_it(size: int, held: Held) -> None:
    weights = [w for w in inventory(Config(layers=1)) if w.held is held]
    blocks = {w.name: torch.randn(w.shape) for w in weights}
    for index in range(size):
        bucket = Bucket([(w, w.shape) for w in weights], share(size, index), CPU)
        bucket.start_from(blocks)
        for slot in bucket.slots:
            flat = blocks[slot.weight.name].reshape(-1)
            assert torch.equal(slot.of(bucket.master), flat[slot.piece.start : slot.piece.stop])
        held_elements = sum(slot.length for slot in bucket.slots)
        assert torch.count_nonzero(bucket.master) <= held_elements
        assert sum(slot.piece.quota for slot in bucket.slots) == bucket.size


def test_some_pieces_are_uneven_and_some_are_empty_on_purpose() -> None:
    dense = [w for w in inventory(Config()) if w.held is Held.DENSE]
    last = Bucket([(w, w.shape) for w in dense], share(4, 3), CPU)
    lengths = {slot.weight.name: (slot.length, slot.piece.quota) for slot in last.slots}
    assert lengths["output.bias"] == (62, 65)
    assert lengths["output.scale"] == (0, 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_maxima_of_all_shares_are_those_of_the_whole_weights(size: int) -> None:
    experts = [w for w in inventory(Config(layers=2)) if w.held is Held.EXPERT]
    blocks = {w.name: torch.randn(w.shape) for w in experts}
    shares = []
    for index in range(size):
        bucket = Bucket([(w, w.shape) for w in experts], share(size, index), CPU)
        bucket.start_from(blocks)
        shares.append(bucket.amax(len(experts) * 16))
    expected = torch.cat([blocks[w.name].abs().amax(dim=(1, 2)) for w in sorted(experts, key=lambda w: w.site or 0)])
    assert torch.equal(torch.stack(shares).amax(dim=0), expected)


def test_an_update_is_adamw_of_torch() -> None:
    config = Config(layers=1, warmup_steps=1)
    weights = [w for w in inventory(config) if w.held is Held.DENSE]
    blocks = {w.name: torch.randn(w.shape) for w in weights}
    bucket = Bucket([(w, w.shape) for w in weights], share(1, 0), CPU)
    bucket.start_from(blocks)
    theirs = {name: block.clone().requires_grad_() for name, block in blocks.items()}
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = torch.optim.AdamW(
        [
            {"params": [theirs[w.name] for w in weights if w.decays], "weight_decay": config.weight_decay},
            {"params": [theirs[w.name] for w in weights if not w.decays], "weight_decay": 0.0},
        ],
        **options,
    )
    for step in (1, 2, 3):
        grads = {name: torch.randn_like(block) for name, block in blocks.items()}
        bucket.update(grads, step, config)
        for name, parameter in theirs.items():
            parameter.grad = grads[name]
        optimizer.step()
    for slot in bucket.slots:
        torch.testing.assert_close(slot.of(bucket.master), theirs[slot.weight.name].detach().reshape(-1))


def test_published_weights_are_the_master_weights_rounded_to_their_stored_type() -> None:
    weights = [w for w in inventory(Config(layers=1)) if w.held is Held.DENSE]
    blocks = {w.name: torch.randn(w.shape) for w in weights}
    bucket = Bucket([(w, w.shape) for w in weights], share(1, 0), CPU)
    bucket.start_from(blocks)
    scale = torch.tensor([50.0, 60.0, 70.0, 80.0])
    stored: dict[str, Tensor] = {
        w.name: torch.empty(w.shape, dtype=torch.bfloat16 if w.site is None else torch.float8_e4m3fn) for w in weights
    }
    bucket.publish(stored, scale)
    for weight in weights:
        block = blocks[weight.name]
        expected = block.bfloat16() if weight.site is None else encode(block, scale[weight.site])
        assert torch.equal(stored[weight.name].float(), expected.float()), weight.name


def test_float8_rounds_to_a_sixteenth_and_saturates() -> None:
    value = torch.tensor([1.0, 1.06, -0.3, 1000.0, -1000.0])
    back = decode(encode(value, torch.tensor(1.0)), torch.tensor(1.0), torch.float32)
    assert back[3:].tolist() == [E4M3_MAX, -E4M3_MAX]
    assert torch.all((back[:3] - value[:3]).abs() <= value[:3].abs() / 16)


def test_a_scale_follows_the_largest_of_the_last_steps_and_forgets() -> None:
    scales = Scales((2,), CPU)
    scales.observe((0,), torch.tensor(4.0))
    scales.observe((0,), torch.tensor(2.0))
    assert scales.present().tolist() == [4.0, 0.0]
    scales.roll(scales.present().clone())
    assert scales.scale.tolist() == [E4M3_MAX / 4.0, 1.0]
    for _ in range(HISTORY - 2):
        scales.roll(torch.tensor([2.0, 0.0]))
    assert scales.scale[0] == E4M3_MAX / 4.0
    scales.roll(torch.tensor([2.0, 0.0]))
    assert scales.scale[0] == E4M3_MAX / 2.0
    assert scales.present().tolist() == [0.0, 0.0]


def test_a_cast_notes_the_maximum_and_lets_the_gradient_pass() -> None:
    scales = Scales((3,), CPU)
    value = torch.tensor([[0.5, -3.0]], requires_grad=True)
    cast_input(value, scales, (1,)).sum().backward()
    assert scales.present().tolist() == [0.0, 3.0, 0.0]
    assert value.grad is not None
    assert value.grad.tolist() == [[1.0, 1.0]]


def test_each_expert_has_its_own_maximum_and_one_without_rows_has_none() -> None:
    scales = Scales((1, 3), CPU)
    cast_expert_input(torch.tensor([[1.0], [-5.0], [2.0]]), torch.tensor([2, 0, 1]), scales, 0)
    assert scales.present().tolist() == [[5.0, 0.0, 2.0]]
    cast_expert_input(torch.empty(0, 1), torch.tensor([0, 0, 0]), scales, 0)
    assert scales.present().tolist() == [[5.0, 0.0, 2.0]]


def test_expert_ranks_count_ep_first() -> None:
    placement = Placement(rank=3, world_size=6, local_rank=0, ep=2, edp=3)
    assert (placement.ep_index, placement.edp_index) == (1, 1)
    assert placement.sharers() == [[0, 1], [2, 3], [4, 5]]
    assert placement.holders() == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(ValueError, match="expected ep x edp = 6 ranks, got 2 x 2"):
        Placement(rank=0, world_size=6, local_rank=0, ep=2, edp=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layer": 2}, r"workload.args.layer: expected one of"),
        ({"layers": 0}, r"workload.args.layers: expected a number >= 1, got 0"),
        ({"nope_every": 0}, r"workload.args.nope_every: expected a number >= 1, got 0"),
        ({"warmup_steps": 0}, r"workload.args.warmup_steps: expected a number >= 1, got 0"),
        ({"layers": 2.5}, r"workload.args.layers: expected a whole number"),
        ({"learning_rate": "fast"}, r"workload.args.learning_rate: expected a number, got 'fast'"),
        ({"learning_rate": math.nan}, r"workload.args.learning_rate: expected a finite number >= 0, got nan"),
        ({"width": 30}, r"expected width to be a multiple of 2 x heads"),
        ({"seed": -1}, r"workload.args.seed: expected 0 to 4294967295, got -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from(args)
    assert config_from({"layers": 2, "learning_rate": 1}).layers == 2
