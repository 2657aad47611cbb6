"""The SDK outside a run, and what it refuses in declarations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.conversion import Cast, Conversion, Intake, ScaledUp
from behemoth.sdk import Run, State, join
from behemoth.sdk.place import lone_place
from behemoth.sdk.reporting import real, whole
from behemoth.sdk.state import BoundState
from behemoth.spec.mesh import Mesh
from sdk.host_memory import raw_of

TWO = Mesh(dp=2, ep=2, edp=1)


def test_outside_a_run_join_gives_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "BEHEMOTH_WORKER_FD"):
        monkeypatch.delenv(name, raising=False)
    run = join()
    state = State()
    weight = np.ones(3)
    state.array("w", weight, shape=(3,))
    assert (run.rank, run.world_size, run.local_rank, run.mesh.dp, run.total_steps) == (0, 1, 0, 1, None)
    assert run.restore(state) == 0
    seen = []
    for step in run.steps(0, total=3):
        run.fence()
        with run.phase("eval"):
            run.report(step, loss=1.0, tokens=3)
        run.save(step, state)
        seen.append(step)
    assert seen == [1, 2, 3]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    return join()


def test_a_report_takes_whatever_is_a_number(alone: Run) -> None:
    losses = [1, 0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.arange(4, dtype=np.float32).mean()]
    assert [real("loss", loss) for loss in losses] == [1.0, 0.5, 0.5, 0.5, 0.5, 1.5]
    assert [whole("step", step) for step in (3, np.int64(3), np.float64(3.0))] == [3, 3, 3]
    for loss in [*losses, None]:
        alone.report(np.int64(3), loss=loss, tokens=np.float64(4096.0))


def test_a_report_takes_a_tensor_without_dims(alone: Run) -> None:
    torch = pytest.importorskip("torch")
    alone.report(torch.tensor(3), loss=torch.ones(2, requires_grad=True).sum(), tokens=torch.tensor(4096))
    with pytest.raises(Invalid, match="loss: expected a number, got Tensor"):
        alone.report(3, loss=torch.ones(2))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"loss": "low"}, "report: loss: expected a number, got str low"),
        ({"loss": np.ones(2)}, "report: loss: expected a number, got ndarray"),
        ({"loss": {}}, "report: loss"),
        ({"tokens": 1.5}, "report: tokens: expected a whole number, got float 1.5"),
        ({"tokens": None}, "report: tokens: expected a whole number, got NoneType"),
        ({"step": float("nan")}, "report: step: expected a whole number, got float nan"),
        ({"step": float("inf")}, "report: step: expected a whole number, got float inf"),
    ],
)
def test_a_report_outside_a_run_refuses_what_is_no_number(alone: Run, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        alone.report(**{"step": 1, **fields})


def test_steps_outside_a_run_need_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    with pytest.raises(Invalid, match="total"):
        next(iter(join().steps(0)))


def test_torchruns_environment_gives_rank_and_world() -> None:
    place = lone_place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (place.rank, place.world_size, place.local_rank, place.mesh.coordinate("dp")) == (3, 4, 1, 3)
    with pytest.raises(Invalid, match="RANK"):
        lone_place({"RANK": "4", "WORLD_SIZE": "4"})


def test_importing_the_sdk_imports_no_torch() -> None:
    code = "import sys, behemoth.sdk; assert 'torch' not in sys.modules and 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_wrong_local_shape_names_array_expected_and_got() -> None:
    state = State()
    state.array("w", np.zeros((4, 3)), shape=(4, 3), dims={0: "ep"})
    with pytest.raises(Invalid, match=r"'w'.*\(2, 3\).*got \(4, 3\)"):
        BoundState(state, TWO, Rank(0))


def test_a_wrong_flat_piece_names_its_range() -> None:
    state = State()
    state.array("m", np.zeros(2), shape=(5,), flat_over="dp")
    with pytest.raises(Invalid, match="3 elements"):
        BoundState(state, TWO, Rank(0))
    BoundState(state, TWO, Rank(1))


def test_names_types_and_dtypes_are_checked_when_declared() -> None:
    state = State()
    state.array("w", np.zeros(2), shape=(2,))
    with pytest.raises(Invalid, match="once"):
        state.array("w", np.zeros(2), shape=(2,))
    with pytest.raises(Invalid, match="numpy array or a torch tensor"):
        state.array("v", [1, 2], shape=(2,))
    with pytest.raises(Invalid, match="dtype"):
        state.array("u", np.array(["a"]), shape=(1,))


def test_a_strided_view_is_refused_with_a_hint() -> None:
    state = State()
    state.array("w", np.zeros((4, 4))[:, :2], shape=(4, 2))
    bound = BoundState(state, Mesh(), Rank(0))
    with pytest.raises(Invalid, match="contiguous"):
        bound.sources()


def test_declarations_end_with_restore_and_save_wants_that_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    run, state = join(), State()
    with pytest.raises(Conflict, match="restore"):
        run.save(1, state)
    run.restore(state)
    with pytest.raises(Conflict, match="before restore"):
        state.array("w", np.zeros(2), shape=(2,))


def test_patterns_of_restore_are_lists_and_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    run = join()
    with pytest.raises(Invalid, match="expected only as a list of patterns, got 'model/"):
        run.restore(State(), only="model/*")
    with pytest.raises(Invalid, match=r"expected missing as a list of patterns, got \[3\]"):
        run.restore(State(), missing=[3])  # type: ignore[list-item]
    assert run.restore(State(), only=["model/*"], missing=("lora/*",)) == 0


@pytest.mark.parametrize(
    ("conversion", "told"),
    [
        (Cast(array="e", begin=(-1, 0)), r"array 'w' by Cast: .* >= 0 - at `\$.begin\[0\]`"),
        (ScaledUp(array="q", scales="s", block=(0, 6)), r"by ScaledUp: .* >= 1 - at `\$.block\[0\]`"),
        (Cast(array=""), "by Cast: .* length >= 1"),
        (Cast(array="e", begin=(1.5,)), r"by Cast: .*expected `int`, got `float`"),  # type: ignore[arg-type]
        ("optim/w", "by str: expected a conversion"),
    ],
)
def test_a_conversion_that_cannot_be_is_refused_where_it_was_written(
    monkeypatch: pytest.MonkeyPatch, conversion: Conversion, told: str
) -> None:
    monkeypatch.delenv("BEHEMOTH_WORKER_FD", raising=False)
    with pytest.raises(Invalid, match=told):
        join().restore(State(), convert={"w": conversion})


def test_a_part_may_begin_at_integers_of_numpy() -> None:
    intake = Intake(convert={"w": Cast(array="e", begin=(np.int64(3), 0))})  # type: ignore[arg-type]
    intake.require_valid()
    assert Intake.decode(intake.encode()).convert == {"w": Cast(array="e", begin=(3, 0))}


def test_a_tensor_that_stands_for_others_is_refused_and_never_read_at_its_address() -> None:
    torch = pytest.importorskip("torch")

    class Wrapper(torch.Tensor):  # type: ignore[name-defined, misc]  # as DTensor is one
        @staticmethod
        def __new__(cls, inner: Any) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError(func)

    for value, told in (
        (Wrapper(torch.ones(4)), "got a Wrapper"),
        (torch.empty(4, device="meta"), "got one on the meta device"),
        (torch.nested.nested_tensor([torch.ones(4)], layout=torch.jagged), "got a NestedTensor"),
    ):
        with pytest.raises(Invalid, match=f"expected a tensor with memory of its own, {told}") as refused:
            State().array("w", value, shape=(4,))
        assert "tensor.to_local()" in refused.value.hint


def test_a_tensor_whose_memory_holds_other_values_is_refused() -> None:
    torch = pytest.importorskip("torch")
    lazy = torch.tensor([1 + 2j, 3 - 4j]).conj()
    for value in (lazy, torch._neg_view(torch.ones(2))):
        state = State()
        state.array("w", value, shape=(2,))
        with pytest.raises(Invalid, match="got a lazy conjugate or negative"):
            BoundState(state, Mesh(), Rank(0)).sources()
    state = State()
    state.array("w", lazy.resolve_conj(), shape=(2,))
    assert (
        raw_of(BoundState(state, Mesh(), Rank(0)).sources()["w"]) == np.array([1 - 2j, 3 + 4j], np.complex64).tobytes()
    )


def test_a_type_that_the_value_has_not_is_refused_also_when_it_changes_later() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(Invalid, match="expected elements of float16, as declared, got bfloat16"):
        State().array("w", torch.ones(4, dtype=torch.bfloat16), shape=(4,), dtype="float16")
    weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    state = State()
    state.array("w", weight, shape=(2, 3))
    bound = BoundState(state, Mesh(), Rank(0))
    weight.data = torch.ones(3, 2, dtype=torch.bfloat16)
    with pytest.raises(Invalid, match=r"expected a local piece of shape \(2, 3\) .*, got \(3, 2\)"):
        bound.sources()
    weight.data = torch.ones(2, 3, dtype=torch.float16)
    with pytest.raises(Invalid, match="expected elements of bfloat16, as declared, got float16"):
        bound.sources()


@pytest.mark.parametrize("shape", [(4.7,), ("4",), 4])
def test_a_shape_is_integers(shape: Any) -> None:
    with pytest.raises(Invalid, match="array 'w': expected a shape of integers, got"):
        State().array("w", np.ones(4), shape=shape)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"packed": {0: (1.5, 2.5)}}, r"packed parts of dim 0 of integers, got \(1.5, 2.5\)"),
        ({"padded": {0: 4.2}}, r"a padded size of dim 0 of integers, got \[4.2\]"),
        ({"flat_bucket": (0, 8.9)}, r"begin and size of a bucket of integers, got \(0, 8.9\)"),
    ],
)
def test_no_other_number_of_a_declaration_is_cut_to_an_integer(told: Any, expected: str) -> None:
    with pytest.raises(Invalid, match=f"array 'w': expected {expected}"):
        State().array("w", np.ones(4), shape=(4,), dims={0: "tp"}, **told)


def test_masked_and_read_only_arrays_are_refused() -> None:
    with pytest.raises(Invalid, match="expected an array without a mask"):
        State().array("w", np.ma.masked_array([1.0, 2.0], mask=[False, True]), shape=(2,))
    fixed = np.ones(2)
    fixed.flags.writeable = False
    state = State()
    state.array("w", fixed, shape=(2,))
    with pytest.raises(Invalid, match="expected an array that can be restored in place, got a read-only one"):
        BoundState(state, Mesh(), Rank(0)).targets()


def test_torch_tensors_are_taken_in_place_whatever_their_dtype() -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        "bf16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "fp8": torch.arange(6, dtype=torch.float32).to(torch.float8_e4m3fn),
        "grad": torch.nn.Parameter(torch.ones(4)),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0),
    }
    state = State()
    for name, tensor in tensors.items():
        state.array(
            name,
            tensor,
            shape=(1,) if name == "empty" else tuple(tensor.shape),
            flat_over="dp" if name == "empty" else None,
        )
    bound = BoundState(state, TWO, Rank(1))
    saved = {name: raw_of(view) for name, view in bound.sources().items()}
    for tensor in tensors.values():
        with torch.no_grad():
            tensor.zero_()
    for name, view in bound.targets().items():
        assert isinstance(view, memoryview)
        np.frombuffer(view, dtype=np.uint8)[:] = np.frombuffer(saved[name], dtype=np.uint8)
    assert tensors["bf16"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["fp8"].float().tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["grad"].tolist() == [1, 1, 1, 1]
    assert tensors["scalar"].item() == 3


def test_a_tensor_that_has_lost_its_memory_is_refused() -> None:
    torch = pytest.importorskip("torch")
    freed = torch.ones(4)
    state = State()
    state.array("w", freed, shape=(4,))
    bound = BoundState(state, Mesh(), Rank(0))
    freed.untyped_storage().resize_(0)
    with pytest.raises(Invalid, match=r"array 'w': expected memory behind its tensor of shape \(4,\), got none"):
        bound.sources()


def test_a_strided_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch")
    state = State()
    state.array("w", torch.ones(3, 2).t(), shape=(2, 3))
    with pytest.raises(Invalid, match="array 'w': expected contiguous memory, got a strided view"):
        BoundState(state, Mesh(), Rank(0)).sources()


def test_records_come_back_typed() -> None:
    state, got = State(), list[Any]()
    state.record(get=lambda: {"at": 3, "seed": b"\x00\xff"}, set=got.append)
    bound = BoundState(state, Mesh(), Rank(0))
    bound.write_records()
    bound.read_records()
    assert got == [{"at": 3, "seed": b"\x00\xff"}]
    assert bound.early_names() == ["state/run"]


def test_an_array_of_another_byte_order_is_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match="this machine's byte order, got >f4") as caught:
        State().array("w", np.arange(3, dtype=">f4"), shape=(3,))
    assert "newbyteorder" in caught.value.hint


def test_parts_of_a_packed_dim_and_rows_of_a_block_are_declared_as_the_program_holds_them() -> None:
    mesh = Mesh(tp=2, dp=2, ep=2, edp=2)
    state = State()
    state.array("gate_up", np.zeros((6, 5), np.float32), shape=(6, 9), dims={1: "tp"}, packed={1: (6, 3)})
    state.array("rows", np.zeros((4, 3), np.float32), shape=(7, 3), flat_over="dp", flat_rows=True)
    bound = BoundState(state, mesh, Rank(0))
    assert {name: memory.nbytes for name, memory in bound.sources().items()} == {"gate_up": 120, "rows": 48}
    wrong = State()
    wrong.array("gate_up", np.zeros((6, 4), np.float32), shape=(6, 9), dims={1: "tp"}, packed={1: (6, 3)})
    with pytest.raises(Invalid, match=r"local piece of shape \(6, 5\)"):
        BoundState(wrong, mesh, Rank(0))
    wrong = State()
    wrong.array("rows", np.zeros((3, 3), np.float32), shape=(7, 3), flat_over="dp", flat_rows=True)
    with pytest.raises(Invalid, match="flat piece of 12 elements") as caught:
        BoundState(wrong, mesh, Rank(0))
    assert "rows [i q" in caught.value.hint
    padded = State()
    padded.array("embedding", np.zeros((3, 4), np.float32), shape=(11, 4), dims={0: "tp"}, padded={0: 16})
    assert BoundState(padded, mesh, Rank(1)).sources()["embedding"].nbytes == 48
    with pytest.raises(Invalid, match=r"local piece of shape \(8, 4\)"):
        BoundState(padded, mesh, Rank(0))
    with pytest.raises(Invalid, match="one padded dim"):
        State().array("w", np.zeros((2, 2)), shape=(4, 4), dims={0: "tp", 1: "dp"}, padded={0: 8, 1: 8})
    with pytest.raises(Invalid, match="one packed dim"):
        State().array("w", np.zeros((2, 2)), shape=(4, 4), dims={0: "tp", 1: "dp"}, packed={0: (2, 2), 1: (2, 2)})
