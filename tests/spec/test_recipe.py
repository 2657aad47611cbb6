"""What a recipe takes and refuses, and that planning does not change what a run is."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Invalid
from behemoth.spec.decode import decode_document
from behemoth.spec.document import difference, fingerprint
from behemoth.spec.problem import InvalidRun
from behemoth.spec.recipe import Recipe, parse_recipe
from spec.run_texts import document


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"weights": "none", "master": "none"}, "weights or a master, got neither"),
        ({"weights": "float32", "master": "split"}, "split beside bfloat16 weights, got it beside float32"),
        ({"weights": "int4"}, "recipe.weights: expected one of none, float32"),
        ({"scale_block": 0}, "recipe.scale_block: expected an integer from 1"),
        ({"scale_block": 64, "weights": "bfloat16"}, "expected it with float8_e4m3fn weights, got 64 with bfloat16"),
        ({"shares": "columns"}, "expected one of flat, rows, whole"),
    ],
)
def test_an_impossible_recipe_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        Recipe(**fields)  # type: ignore[arg-type]


def test_a_recipe_in_a_run_file_is_refused_at_its_field() -> None:
    with pytest.raises(InvalidRun, match=r"spec\.recipe\.master: expected split beside bfloat16") as caught:
        decode_document(document(recipe={"master": "split"}))
    assert [problem.path for problem in caught.value.problems] == ["spec.recipe.master"]
    with pytest.raises(InvalidRun, match=r"spec\.recipe\.weigths"):
        decode_document(document(recipe={"weigths": "bfloat16"}))


def test_another_recipe_is_the_same_run() -> None:
    plain = decode_document(document())
    other = decode_document(document(recipe={"weights": "bfloat16"}))
    assert other.recipe.weights == "bfloat16"
    assert difference(plain, other) == []
    assert fingerprint(plain) == fingerprint(other)


def test_fields_of_a_text_change_a_recipe_and_leave_the_rest() -> None:
    base = Recipe(exp_avg="bfloat16")
    read = parse_recipe("weights=float8_e4m3fn, scale_block=64,master=none", base)
    assert read == Recipe(weights="float8_e4m3fn", scale_block=64, master="none", exp_avg="bfloat16")


def test_blocks_of_scales_go_with_the_weights_that_had_them() -> None:
    base = Recipe(weights="float8_e4m3fn", scale_block=64)
    assert parse_recipe("weights=bfloat16", base) == Recipe(weights="bfloat16")
    assert parse_recipe("master=none", base).scale_block == 64
    with pytest.raises(Invalid, match=r"--x: recipe\.scale_block: expected it with float8_e4m3fn weights"):
        parse_recipe("weights=bfloat16,scale_block=64", base, name="--x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights", "--x: expected each field once with its value, got 'weights'"),
        ("weights=float32,weights=none", "got 'weights=none'"),
        ("wieghts=none", "got 'wieghts=none'"),
        ("scale_block=-1", "got 'scale_block=-1'"),
        ("scale_block=0", r"--x: recipe\.scale_block: expected an integer from 1"),
        ("weights=int4", r"--x: recipe\.weights: expected one of none"),
        ("master=split", r"--x: recipe\.master: expected split beside bfloat16 weights"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused_with_the_options_name(text: str, expected: str) -> None:
    with pytest.raises(Invalid, match=expected):
        parse_recipe(text, Recipe(), name="--x")
