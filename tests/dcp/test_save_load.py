"""dcp.save and dcp.load of one process through the adapters: ids and steps, replacing, values, refusals, damage."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
import re
import sys
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, LoadPlan
from torch.distributed.checkpoint.api import CheckpointException
from torch.testing._internal.two_tensor import TwoTensor

from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.base.ids import RunUid
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.pins import pin
from behemoth.dcp import BehemothReader, BehemothWriter, fill
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from checkpoint.checkpoint_rig import logical_arrays, toy_layout
from checkpoint.checkpoint_rig import save as save_natively
from checkpoint.independent_reader import newest, read_checkpoint, record_of
from dcp.saved import Meanwhile, loaded, refs, refusal, state_of, writes
from dcp.trees import blank, load, same, save


def test_saves_without_a_step_are_numbered_and_the_newest_is_loaded(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path)
    for seed in (1, 2, 3):
        save(state_of(seed), storage_writer=writer)
    assert [ref.step for ref in refs(tmp_path)] == [0, 1, 2]
    assert same(loaded(tmp_path, state_of(0)), state_of(3))
    assert same(loaded(tmp_path, state_of(0), step=1), state_of(2))


def test_a_reader_that_knows_the_document_alone_reads_what_dcp_saved(tmp_path: Path) -> None:
    save({**state_of(4), "odd.name/x": torch.ones(3, 2).t()}, storage_writer=BehemothWriter(tmp_path / "step-7"))
    found = read_checkpoint(tmp_path, newest(tmp_path))
    contents = record_of(found.pop("state/dcp"))
    assert found.keys() == {"model.weight", "model.scale", "optim.moments.0", "odd.name/x"}
    assert found["model.weight"].tobytes() == state_of(4)["model"]["weight"].numpy().tobytes()
    assert (found["model.scale"].shape, float(found["model.scale"])) == ((), 4.0)
    assert found["odd.name/x"].shape == (2, 3)
    assert contents["empty"] == {"model.none": {"dtype": "float32", "shape": [0, 4]}}
    assert contents["values"]["optim.betas"] == {"%tuple": [0.9, 0.4]}
    assert contents["paths"]["optim.moments.0"] == ["optim", "moments", 0]


def test_a_tensor_of_eleven_large_rows_is_stored_without_padding_as_its_commit_says(tmp_path: Path) -> None:
    """Two chunks of six rows would hold twelve. What ranks are told of a tensor is what the commit has of it."""
    state = {
        "few rows": torch.arange(11 * 996_147).remainder(251).to(torch.uint8).reshape(11, -1),
        "odd": torch.ones(7),
    }
    save(state, storage_writer=BehemothWriter(tmp_path))
    assert same(loaded(tmp_path, state), state)
    (ref,) = refs(tmp_path)
    with closing(LocalStore(tmp_path)) as store:
        record = open_commit(store, ref).record
        (size,) = (info.size_bytes for info in store.list("steps") if "few%20rows/c" in info.key)
    assert (record.format.minor, record.required_features) == (5, ("close-chunks",))
    assert size < 1.001 * state["few rows"].nbytes


def test_a_checkpoint_id_names_store_and_step_for_both_ways(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path / "elsewhere")
    for step in (10, 20):
        save(state_of(step), storage_writer=writer, checkpoint_id=tmp_path / "out" / f"step-{step}")
    assert [ref.step for ref in refs(tmp_path / "out")] == [10, 20]
    got = load(blank(state_of(0)), storage_reader=BehemothReader("unused"), checkpoint_id=f"{tmp_path}/out/step-10")
    assert same(got, state_of(10))
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_url_is_a_store(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(f"file://{tmp_path}/step-4"))
    assert same(loaded(f"file://{tmp_path}/4", state_of(0)), state_of(1))


def test_the_same_id_is_replaced_and_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path / "step-5")
    save(state_of(1), storage_writer=writer)
    save(state_of(2), storage_writer=writer)
    (ref,) = refs(tmp_path)
    assert writes(tmp_path) == {(5, ref.write_id)}
    assert same(loaded(tmp_path / "step-5", state_of(0)), state_of(2))
    assert not list(tmp_path.glob("rejected/*"))


def test_a_checkpoint_stays_when_overwriting_is_off_or_it_is_pinned(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "step-5"))
    with pytest.raises(CheckpointException) as caught:
        save(state_of(2), storage_writer=BehemothWriter(tmp_path / "step-5", overwrite=False))
    assert refusal(caught.value).code == "dcp-exists"
    with closing(LocalStore(tmp_path)) as store:
        pin(store, refs(tmp_path)[0], reason="mine", at_us=0)
    with pytest.raises(CheckpointException) as caught:
        save(state_of(2), storage_writer=BehemothWriter(tmp_path / "step-5"))
    assert refusal(caught.value).code == "dcp-pinned"
    assert same(loaded(tmp_path, state_of(0)), state_of(1))


def test_a_store_of_a_run_is_refused(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store:
        take(store, Owner.of_run(RunUid("uid"), name="big", directory="/runs/big"), url=str(tmp_path))
    with pytest.raises(CheckpointException) as caught:
        save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    assert isinstance(refusal(caught.value), Conflict)
    assert "run/big" in str(refusal(caught.value))


def test_a_subset_is_loaded_and_the_rest_stays_in_the_store(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    part = {"model": {"weight": torch.zeros(33, 17)}}
    assert torch.equal(
        load(part, storage_reader=BehemothReader(tmp_path))["model"]["weight"], state_of(1)["model"]["weight"]
    )


def test_a_missing_key_is_an_error_unless_partial_loads_are_allowed(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    wanted = {"model": {"weight": torch.zeros(33, 17), "new": torch.full((2,), 7.0)}}
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: model\.new"):
        load(dict(wanted), storage_reader=BehemothReader(tmp_path))
    planner = DefaultLoadPlanner(allow_partial_load=True)
    got = load(wanted, storage_reader=BehemothReader(tmp_path), planner=planner)["model"]
    assert torch.equal(got["weight"], state_of(1)["model"]["weight"])
    assert got["new"].tolist() == [7.0, 7.0]


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    with pytest.raises(CheckpointException, match="Size mismatch"):
        load({"model": {"weight": torch.zeros(17, 33)}}, storage_reader=BehemothReader(tmp_path))


@pytest.mark.parametrize("staging_bytes", [fill.STAGING_BYTES, 64])
def test_strided_tensors_and_those_of_another_dtype_are_filled_as_copy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staging_bytes: int
) -> None:
    monkeypatch.setattr(fill, "STAGING_BYTES", staging_bytes)
    weight = torch.randn(6, 40)
    save({"a": weight, "b": weight, "c": weight.t()}, storage_writer=BehemothWriter(tmp_path))
    into = {"a": torch.zeros(40, 6).t(), "b": torch.zeros(6, 40, dtype=torch.bfloat16), "c": torch.zeros(40, 6)}
    load(into, storage_reader=BehemothReader(tmp_path))
    assert torch.equal(into["a"], weight)
    assert torch.equal(into["b"], weight.bfloat16())
    assert torch.equal(into["c"], weight.t())


def test_tensors_whose_memory_is_not_what_they_show_are_filled_as_copy_does(tmp_path: Path) -> None:
    parts, imaginary = torch.randn(2, 3), torch.randn(1)
    save({"parts": parts, "imag": imaginary}, storage_writer=BehemothWriter(tmp_path))
    negated = torch.zeros(1, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    assert negated.is_contiguous()
    into: dict[str, Any] = {"parts": TwoTensor(torch.zeros(2, 3), torch.zeros(2, 3)), "imag": negated}
    load(into, storage_reader=BehemothReader(tmp_path))
    assert torch.equal(into["imag"], imaginary)
    assert torch.equal(into["parts"].a, parts)
    assert torch.equal(into["parts"].b, parts)


def test_a_large_tensor_is_written_and_read_by_several_threads_in_many_chunks(tmp_path: Path) -> None:
    state = {
        "big": torch.arange(13_000_000, dtype=torch.int32).reshape(1300, -1),
        "columns": torch.randn(3000, 7)[:, 2:],
    }
    save(state, storage_writer=BehemothWriter(tmp_path, threads=3))
    assert same(loaded(tmp_path, state, threads=3), state)


def test_what_only_pickle_can_keep_is_refused_by_name_and_nothing_is_committed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.ones(3), "run": {"began": timedelta(1)}}, storage_writer=BehemothWriter(tmp_path))
    assert "'run.began'" in str(refusal(caught.value))
    assert "allow_pickle=True" in refusal(caught.value).hint
    assert refs(tmp_path) == []


def test_values_of_numpy_are_kept_without_pickle_and_hinder_no_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def state(seed: int) -> dict[str, Any]:
        optim = {"m": np.full((2, 3), seed, dtype=np.float16), "lr": np.float64(seed) / 3, "ids": {seed, 9}}
        return {"w": torch.full((4,), float(seed)), "optim": optim, "seen": [np.arange(seed)]}

    for seed in (1, 2):
        save(state(seed), storage_writer=BehemothWriter(tmp_path / f"step-{seed}"))
    assert same(loaded(tmp_path / "step-2", state(0)), state(2))
    assert root.run(["ckpt", "show", str(tmp_path)]) == 0
    assert root.run(["ckpt", "diff", str(tmp_path), "1", "2"]) == 3
    assert root.run(["ckpt", "export", str(tmp_path), "--to", str(tmp_path.parent / "exported")]) == 0
    assert "state/dcp" in capsys.readouterr().out


def test_pickles_need_the_flag_on_both_ways(tmp_path: Path) -> None:
    state: dict[str, Any] = {"w": torch.ones(3), "n": timedelta(2)}
    save(state, storage_writer=BehemothWriter(tmp_path, allow_pickle=True))
    with pytest.raises(CheckpointException) as caught:
        loaded(tmp_path, state)
    assert refusal(caught.value).code == "dcp-pickle"
    assert "'n'" in str(refusal(caught.value))
    assert same(loaded(tmp_path, state, allow_pickle=True), state)
    assert torch.equal(loaded(tmp_path, {"w": state["w"]})["w"], state["w"])


class Shouting(DefaultSavePlanner):
    """A planner that changes values, of which the adapter sees only a stream."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return super().transform_object(write_item, object.upper() if isinstance(object, str) else object)


def test_values_that_a_planner_changes_are_kept_as_it_gives_them(tmp_path: Path) -> None:
    save(
        {"w": torch.ones(2), "name": "adam", "pair": (1, 2)},
        storage_writer=BehemothWriter(tmp_path),
        planner=Shouting(),
    )
    got = loaded(tmp_path, {"w": torch.ones(2), "name": "", "pair": ()})
    assert (got["name"], got["pair"]) == ("ADAM", (1, 2))


def test_nested_dicts_stay_whole_with_a_planner_that_does_not_flatten(tmp_path: Path) -> None:
    as_it_is = {"flatten_state_dict": False, "flatten_sharded_tensors": False}
    state = {"w": torch.ones(2), "optim": {"lr": 0.5, "groups": [{"ids": [0, 1]}], 3: None}}
    save(state, storage_writer=BehemothWriter(tmp_path), planner=DefaultSavePlanner(**as_it_is))
    planner = DefaultLoadPlanner(**as_it_is)
    assert same(load(blank(state), storage_reader=BehemothReader(tmp_path), planner=planner), state)


def test_a_dtype_that_the_format_has_not_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"q": torch.zeros(2, dtype=torch.float8_e4m3fnuz)}, storage_writer=BehemothWriter(tmp_path))
    assert "'q'" in str(refusal(caught.value))
    assert "float8_e4m3fnuz" in str(refusal(caught.value))


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo on cpu in a torch.Tensor"),
        (torch.empty(3, device="meta"), "strided on meta in a torch.Tensor"),
        (TwoTensor(torch.ones(3), torch.ones(3)), r"strided on cpu in a .*two_tensor\.TwoTensor"),
    ],
)
def test_a_tensor_without_elements_in_memory_is_refused_with_the_key(
    tmp_path: Path, tensor: torch.Tensor, got: str
) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"model": {"odd": tensor}, "w": torch.ones(2)}, storage_writer=BehemothWriter(tmp_path))
    expected = rf"'model\.odd': expected one with its elements in memory, got torch\.{got}"
    assert re.search(expected, str(refusal(caught.value)))
    assert refs(tmp_path) == []


def test_the_key_of_the_record_of_values_is_refused_for_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"state/dcp": torch.ones(2)}, storage_writer=BehemothWriter(tmp_path))
    assert refusal(caught.value).code == "dcp-key"


def test_without_collectives_nothing_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="use_collectives=False"):
        save({"w": torch.ones(2)}, storage_writer=BehemothWriter(tmp_path), use_collectives=False)


def test_a_store_without_the_checkpoint_says_which_steps_it_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="expected a checkpoint, got none"):
        loaded(tmp_path, state_of(1))
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "step-7"))
    with pytest.raises(NotFound, match="of step 8") as caught:
        BehemothReader(tmp_path / "step-8").read_metadata()
    assert caught.value.hint == "steps that are there: 7"


def test_ranks_that_opened_different_checkpoints_are_refused(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    reader = BehemothReader(tmp_path)
    plans = []
    for seed in (1, 2):
        reader.read_metadata()
        plans.append(reader.prepare_local_plan(LoadPlan([])))
        save(state_of(seed), storage_writer=BehemothWriter(tmp_path))
    assert reader.prepare_global_plan([plans[0], dataclasses.replace(plans[0])])
    with pytest.raises(Conflict, match="all ranks to open the same checkpoint"):
        reader.prepare_global_plan(plans)


def test_a_flipped_bit_is_named_with_array_and_file(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    (file,) = tmp_path.glob("steps/*/model.weight/c/0/0")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointException) as caught:
        loaded(tmp_path, state_of(1))
    assert refusal(caught.value).code == "chunk-crc"
    assert "array 'model.weight', chunk 0" in str(refusal(caught.value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["in place", "by way of a buffer"])
def test_intact_chunks_of_another_checkpoint_are_not_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    """As when files of one step were copied over another's: each chunk by itself is as it was written."""
    for seed in (1, 2):
        save(state_of(seed), storage_writer=BehemothWriter(tmp_path))
    others, files = sorted(tmp_path.glob("steps/*/model.weight/c/0/0"))
    assert others.read_bytes() != files.read_bytes()
    files.write_bytes(others.read_bytes())
    with pytest.raises(CheckpointException) as caught:
        load({"model": {"weight": torch.zeros(33, 17, dtype=dtype)}}, storage_reader=BehemothReader(tmp_path))
    assert refusal(caught.value).code == "array-content"
    assert "array 'model.weight'" in str(refusal(caught.value))


def test_a_checkpoint_of_a_run_is_loaded_by_the_names_of_its_arrays(tmp_path: Path) -> None:
    layout = toy_layout()
    expected = logical_arrays(layout, 3)
    with closing(LocalStore(tmp_path)) as store:
        save_natively(store, layout, expected, step=3)
    state = {"model/dense": torch.zeros(6, 10, dtype=torch.bfloat16), "optim/odd": torch.zeros(7, 3)}
    load(state, storage_reader=BehemothReader(tmp_path), planner=DefaultLoadPlanner(flatten_state_dict=False))
    for name, tensor in state.items():
        assert tensor.view(torch.uint8).numpy().tobytes() == expected[name].tobytes()


def test_a_writer_goes_through_pickle_as_processes_need_it(tmp_path: Path) -> None:
    writer = BehemothWriter(tmp_path / "step-2")
    save(state_of(1), storage_writer=writer)
    again: BehemothWriter = pickle.loads(pickle.dumps(writer))  # noqa: S301  what torch does between its processes
    save(state_of(2), storage_writer=again)
    assert same(loaded(tmp_path, state_of(0)), state_of(2))


def test_a_checkpoint_that_others_made_meanwhile_is_not_replaced_by_a_numbered_save(tmp_path: Path) -> None:
    other = Meanwhile(lambda: save(state_of(7), storage_writer=BehemothWriter(tmp_path)))
    with pytest.raises(CheckpointException) as caught:
        save(state_of(1), storage_writer=BehemothWriter(tmp_path), planner=other)
    assert refusal(caught.value).code == "commit-taken"
    assert same(loaded(tmp_path, state_of(0)), state_of(7))


def test_a_pin_that_was_set_while_a_step_is_saved_again_holds(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "step-3"))

    def pin_it() -> None:
        with closing(LocalStore(tmp_path)) as store:
            pin(store, refs(tmp_path)[0], reason="mine", at_us=0)

    with pytest.raises(CheckpointException):
        save(state_of(2), storage_writer=BehemothWriter(tmp_path / "step-3"), planner=Meanwhile(pin_it))
    assert same(loaded(tmp_path, state_of(0)), state_of(1))


def test_the_command_line_lists_shows_verifies_compares_and_exports_what_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, exported = str(tmp_path / "out"), tmp_path / "exported"
    for seed in (1, 2):
        save(state_of(seed), storage_writer=BehemothWriter(f"{store}/step-{seed}"))
    told = {}
    for verb in (["list"], ["show"], ["verify"], ["export", "--to", str(exported), "--select", "model.*"]):
        assert root.run(["ckpt", verb[0], store, *verb[1:]]) == 0, verb
        told[verb[0]] = capsys.readouterr().out
    assert "model.weight" in told["show"]
    assert root.run(["ckpt", "diff", store, "1", "2"]) == 3
    assert "model.weight" in capsys.readouterr().out
    (file,) = exported.glob("*.safetensors")
    weight = safetensors.torch.load_file(file)["model.weight"]
    assert torch.equal(weight, state_of(2)["model"]["weight"])


class Waiting(DefaultSavePlanner):
    """Stops at the first tensor until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.goes_on = threading.Event(), threading.Event()

    def resolve_data(self, write_item: Any) -> torch.Tensor | io.BytesIO:
        self.began.set()
        assert self.goes_on.wait(60)
        return super().resolve_data(write_item)


def test_a_second_save_of_a_writer_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    writer, planner = BehemothWriter(tmp_path), Waiting()
    first = threading.Thread(target=save, args=(state_of(1),), kwargs={"storage_writer": writer, "planner": planner})
    first.start()
    try:
        assert planner.began.wait(60)
        with pytest.raises(CheckpointException) as caught:
            save(state_of(2), storage_writer=writer)
    finally:
        planner.goes_on.set()
        first.join()
    assert refusal(caught.value).code == "dcp-two-saves"
    assert same(loaded(tmp_path, state_of(0)), state_of(1))


def test_without_torch_the_package_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch" or name.startswith("behemoth.dcp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Invalid, match="expected PyTorch") as caught:
        importlib.import_module("behemoth.dcp")
    assert caught.value.hint == "pip install 'behemoth[torch]'"


def test_an_empty_state_dict_loads_everything_by_what_the_checkpoint_says(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    with pytest.warns(UserWarning, match="single process"):
        got = _load_state_dict_from_keys(storage_reader=BehemothReader(tmp_path))
    assert same({"model": got["model"], "optim": got["optim"]}["model"]["weight"], state_of(1)["model"]["weight"])
    assert got["optim"]["betas"] == state_of(1)["optim"]["betas"]
    assert same(got["optim"]["moments"], state_of(1)["optim"]["moments"])
