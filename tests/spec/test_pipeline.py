"""Which stage holds which layer: every layer once, in the parts that were told, dealt out in turn."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.spec.decode import decode_document
from behemoth.spec.document import difference, fingerprint
from behemoth.spec.pipeline import Pipeline
from behemoth.spec.problem import InvalidRun
from spec.run_texts import document


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_told_parts_go_to_the_stages_in_turn(data: st.DataObject, num_stages: int, virtual: int) -> None:
    num_parts = num_stages * virtual
    layers = tuple(data.draw(st.lists(st.integers(0, 4), min_size=num_parts, max_size=num_parts).filter(any)))
    pipeline, num_layers = Pipeline(layers=layers, virtual=virtual), sum(layers)
    assert list(pipeline.misfits(num_layers, num_stages)) == []
    stages = [pipeline.stage_of_layer(layer, num_layers, num_stages) for layer in range(num_layers)]
    begins = [0, *accumulate(layers)]
    for part, (begin, end) in enumerate(pairwise(begins)):
        assert stages[begin:end] == [part % num_stages] * layers[part]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 60))
def test_parts_are_as_even_as_whole_layers_allow_where_nothing_is_told(
    num_stages: int, virtual: int, more: int
) -> None:
    pipeline, num_parts = Pipeline(virtual=virtual), num_stages * virtual
    num_layers = num_parts + more
    stages = [pipeline.stage_of_layer(layer, num_layers, num_stages) for layer in range(num_layers)]
    runs = [1 if at == 0 or stages[at] != stages[at - 1] else 0 for at in range(num_layers)]
    assert sum(runs) == (num_parts if num_stages > 1 else 1)
    least, most = num_layers // num_parts, -(-num_layers // num_parts)
    assert all(least * virtual <= stages.count(stage) <= most * virtual for stage in range(num_stages))
    if virtual == 1:
        assert stages == [layer * num_stages // num_layers for layer in range(num_layers)]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"layers": [24, 24]}, r"spec.pipeline.layers: expected 4 parts \(pp 4 x virtual 1\), got 2"),
        ({"layers": [12, 12, 12, 13]}, "spec.pipeline.layers: expected the model's 48 layers in all, got 49"),
        ({"layers": [6] * 4, "virtual": 2}, r"expected 8 parts \(pp 4 x virtual 2\), got 4"),
        ({"virtual": 13}, "spec.pipeline.virtual: expected at most 12 parts per stage, got 13"),
        ({"virtual": 0}, "spec.pipeline.virtual: expected an integer from 1"),
        ({"layers": [-1]}, r"spec.pipeline.layers\[0\]: expected an integer from 0"),
    ],
)
def test_a_pipeline_that_does_not_suit_model_and_mesh_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidRun, match=text):
        decode_document(document(model={"ref": "scout"}, mesh={"pp": 4}, pipeline=fields))


def test_the_number_of_parts_is_checked_without_a_model_too() -> None:
    run = decode_document(document(mesh={"dp": 2, "pp": 2}, pipeline={"layers": [3, 5]}))
    assert run.pipeline == Pipeline(layers=(3, 5))
    with pytest.raises(InvalidRun, match="expected 2 parts"):
        decode_document(document(mesh={"dp": 2, "pp": 2}, pipeline={"layers": [3]}))
    with pytest.raises(Invalid, match=r"pipeline\.layers: expected an integer from 0 to 10000, got the number -1"):
        Pipeline(layers=(1, -1))


def test_another_pipeline_is_the_same_run() -> None:
    plain, other = (decode_document(document(mesh={"dp": 2, "pp": 2}, pipeline=one)) for one in (None, {"virtual": 2}))
    assert difference(plain, other) == []
    assert fingerprint(plain) == fingerprint(other)
