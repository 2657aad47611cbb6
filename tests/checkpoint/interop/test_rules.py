"""Name maps: every step and its way back, and that nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.map_file import MAP_NAMES, decode_map, named_map
from behemoth.checkpoint.interop.rules import NameMap
from behemoth.checkpoint.interop.tensors import Tensor
from checkpoint.interop.tensor_trees import chunked, read


def the_map(rules: str, more: str = "") -> NameMap:
    return decode_map(f"format: 1\nrules:\n{rules}\n{more}".encode(), source="test.yaml")


def numbered(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {
        name: chunked(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * number)
        for number, (name, shape) in enumerate(shapes)
    }


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: read(tensor) for name, tensor in tensors.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


QKV = """
  - ours: layers.{n}.wqkv
    theirs: ["l.{n}.q", "l.{n}.k", "l.{n}.v"]
    steps:
      - split: {dim: 1, sizes: [dim 0, rest, rest]}
      - permute: [1, 0]
"""
EXPERTS = """
  - ours: ["e.{x}.{n}.gate", "e.{x}.{n}.up"]
    theirs: experts.{n}.gate_up
    steps:
      - concat: {dim: 1, sizes: [rest, rest]}
      - stack: {dim: 0, over: x}
"""
UNSTACK = """
  - ours: experts.{n}
    theirs: e.{n}.{x}
    steps: [unstack: {dim: 1, over: x}]
"""


def test_a_split_and_a_permute_give_what_numpy_gives() -> None:
    ours = numbered(("layers.3.wqkv", (4, 8)))
    (packed,) = arrays(ours).values()
    made = arrays(the_map(QKV).apply(ours))
    q, k, v = np.split(packed, [4, 6], axis=1)
    assert same(made, {"l.3.q": q.T, "l.3.k": k.T, "l.3.v": v.T})


def test_a_concat_and_a_stack_give_what_numpy_gives() -> None:
    ours = numbered(*((f"e.{x}.7.{name}", (2, 3)) for x in (1, 0) for name in ("up", "gate")))
    given_arrays = arrays(ours)
    wanted = np.stack(
        [np.concatenate([given_arrays[f"e.{x}.7.gate"], given_arrays[f"e.{x}.7.up"]], axis=1) for x in (0, 1)]
    )
    assert same(arrays(the_map(EXPERTS).apply(ours)), {"experts.7.gate_up": wanted})


def test_an_unstack_numbers_the_parts() -> None:
    ours = numbered(("experts.a", (2, 3)))
    (whole,) = arrays(ours).values()
    made = arrays(the_map(UNSTACK).apply(ours))
    assert same(made, {f"e.a.{x}": whole[:, x] for x in range(3)})


@pytest.mark.parametrize(
    ("rules", "ours"),
    [
        (QKV, numbered(("layers.3.wqkv", (4, 8)), ("layers.10.wqkv", (6, 6 + 2)))),
        (
            EXPERTS,
            numbered(*((f"e.{x}.{n}.{name}", (2, 3)) for x in range(12) for n in "ab" for name in ("up", "gate"))),
        ),
        (UNSTACK, numbered(("experts.a", (2, 11)), ("experts.b", (4, 1)))),
    ],
)
def test_the_way_back_undoes_the_way_out(rules: str, ours: dict[str, Tensor]) -> None:
    names = the_map(rules)
    assert same(arrays(names.inverse().apply(names.apply(ours))), arrays(ours))
    assert names.inverse().inverse() == NameMap(
        rules=names.rules, dropped=names.dropped, dropped_back=names.dropped_back, digest=names.digest
    )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_chains_of_steps_come_back(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3)))
    order = data.draw(st.permutations(range(3)))
    dim, over = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    full = [*shape]
    full[order[dim]] = sum(sizes)
    ours = numbered(("w.0", tuple(full)), ("w.1", tuple(full)))
    targets = ", ".join(f'"t{part}.{{n}}.{{x}}"' for part in range(len(sizes)))
    names = the_map(
        f"  - ours: w.{{n}}\n    theirs: [{targets}]\n    steps: [permute: {list(order)}, "
        f"split: {{dim: {dim}, sizes: {sizes}}}, unstack: {{dim: {over}, over: x}}]"
    )
    assert same(arrays(names.inverse().apply(names.apply(ours))), arrays(ours))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_reshapes_come_back_and_are_what_numpy_gives(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    before, behind = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    shape = (*range(2, 2 + before), int(np.prod(sizes)), *range(3, 3 + behind))
    ours = numbered(("a", shape), ("b", shape))
    told: list[int | str] = [*sizes]
    told[data.draw(st.integers(0, len(sizes) - 1))] = data.draw(st.sampled_from(["rest", "named"]))
    named = next((size for size, text in zip(sizes, told, strict=True) if text == "named"), 1)
    names = the_map(
        f"  - {{ours: '{{x}}', theirs: 't{{x}}', steps: [unflatten: {{dim: {before}, sizes: {told}}}]}}",
        f"sizes: {{named: {named}}}",
    )
    made = names.apply(ours)
    wide = (*shape[:before], *sizes, *shape[before + 1 :])
    assert same(arrays(made), {f"t{name}": array.reshape(wide) for name, array in arrays(ours).items()})
    assert same(arrays(names.inverse().apply(made)), arrays(ours))


GROUPS = """
  - {ours: "l.{n}.norm", theirs: "moe.{n}.norm", beside: "l.{n}.router"}
  - {ours: "l.{n}.norm", theirs: "dense.{n}.norm"}
  - {ours: "l.{n}.router", theirs: "r.{n}"}
  - {ours: "l.{n}.w", theirs: "w.{n}", steps: [flatten: {dim: 0, sizes: [experts, rest]}]}
"""
EXPERT_SIZE = 'sizes: {experts: {ours: {name: "l.{n}.router", dim: 0}, theirs: {name: "r.{n}", dim: 0}}}'


def test_a_rule_may_ask_for_a_neighbour_and_a_size_for_another_tensor() -> None:
    ours = numbered(("l.0.norm", (3,)), ("l.1.norm", (3,)), ("l.1.router", (5, 2)), ("l.1.w", (5, 4)))
    names = the_map(GROUPS, EXPERT_SIZE)
    made = names.apply(ours)
    assert {name: tensor.shape for name, tensor in made.items()} == {
        "dense.0.norm": (3,),
        "moe.1.norm": (3,),
        "r.1": (5, 2),
        "w.1": (20,),
    }
    assert same(arrays(names.inverse().apply(made)), arrays(ours))


@pytest.mark.parametrize(
    ("theirs", "text"),
    [
        (
            [("w.1", (20,))],
            r"rule w.\{n\} -> l.\{n\}.w: unflatten: expected a tensor that tells the size 'experts', got",
        ),
        (
            [("w.1", (20,)), ("r.1", (3, 2))],
            r"expected sizes that fill 20 elements of shape \[20\], got \[experts \(3\), r",
        ),
        ([("r.1", (3, 2)), ("r.2", (5, 2))], "expected the same of all tensors, got 3 of 'r.1' and 5 of 'r.2'"),
        ([("r.1", ())], r"expected a dim 0 of tensor 'r.1', got shape \[\]"),
    ],
)
def test_a_size_that_cannot_be_told_is_refused(theirs: list[tuple[str, tuple[int, ...]]], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        the_map(GROUPS, EXPERT_SIZE).inverse().apply(numbered(*theirs))


def test_parts_that_would_not_unflatten_into_what_they_were_are_refused() -> None:
    with pytest.raises(
        Invalid, match=r"rule l.* -> w.*: flatten from dim 0 on: expected dims of \[5, 4\], got \[2, 10\]"
    ):
        the_map(GROUPS, EXPERT_SIZE).apply(numbered(("l.1.router", (5, 2)), ("l.1.w", (2, 10))))


def test_a_size_that_is_given_beats_that_of_the_map_and_counts_in_its_digest() -> None:
    document = f"format: 1\nrules:\n{GROUPS}\n{EXPERT_SIZE}".encode()
    plain, given_size = (decode_map(document, source="x", sizes=sizes) for sizes in (None, {"experts": 5}))
    made = given_size.inverse().apply(numbered(("w.1", (20,))))
    assert {name: tensor.shape for name, tensor in made.items()} == {"l.1.w": (5, 4)}
    assert plain.digest != given_size.digest
    with pytest.raises(Invalid, match="size: expected one of experts, and at least 1, got heads"):
        decode_map(document, source="x", sizes={"heads": 5})
    with pytest.raises(Invalid, match="expected none, since the map names none"):
        named_map("weights", {"heads": 5})


def test_the_first_rule_that_matches_counts_and_what_is_dropped_is_left_out() -> None:
    names = the_map(
        '  - {ours: a.special, theirs: one}\n  - {ours: "{all*}", theirs: "rest.{all*}"}',
        'drop:\n  ours: ["optim/{x*}"]\n  theirs: [extra]',
    )
    made = names.apply(numbered(("a.special", (1,)), ("optim/a/b", (1,)), ("a.b/c", (1,))))
    assert list(made) == ["one", "rest.a.b/c"]
    assert list(names.inverse().apply(numbered(("extra", (1,)), ("one", (1,))))) == ["a.special"]


def test_a_map_may_drop_all_others() -> None:
    names = the_map("  - {ours: a, theirs: b}", "others: drop")
    assert list(names.apply(numbered(("a", (1,)), ("x", (1,))))) == ["b"]
    assert list(names.inverse().apply(numbered(("b", (1,)), ("x", (1,))))) == ["a"]


@pytest.mark.parametrize(
    ("rules", "ours", "text"),
    [
        (QKV, numbered(("other", (1,))), "tensor 'other': expected a rule of the map for it"),
        (
            QKV,
            numbered(("layers.3.wqkv", (4, 7))),
            "rule layers.{n}.wqkv -> .*: split along dim 1: expected sizes that fill 7",
        ),
        (QKV, numbered(("layers.3.wqkv", (4,))), r"expected a dim below 1 of shape \[4\], got 1"),
        (EXPERTS, numbered(("e.0.7.gate", (2, 3))), "'e.0.7.up': expected it beside the others"),
        (
            EXPERTS,
            numbered(*((f"e.{x}.7.{name}", (2, 3)) for x in (0, 2) for name in ("up", "gate"))),
            "'e.1.7.gate': expected it beside the others",
        ),
        (
            EXPERTS,
            numbered(*((f"e.{x}.7.{name}", (2, 3)) for x, name in ((0, "up"), (1, "up"), (0, "gate")))),
            r"concat: expected equally many tensors of each name, got \[1, 2\]",
        ),
        (EXPERTS, numbered(("e.x.7.gate", (2, 3))), "expected a number for 'x'"),
        (EXPERTS, numbered(("e.01.7.gate", (2, 3))), "expected a number for 'x'"),
        (
            EXPERTS,
            numbered(("e.0.7.gate", (2, 3)), ("e.0.7.up", (2, 4))),
            r"concat along dim 1: expected sizes that fill 7",
        ),
        (
            '  - {ours: "{a}.x", theirs: same}\n',
            numbered(("p.x", (1,))),
            r"expected the words \['a'\] in 'same', got \[\]",
        ),
        (
            "  - {ours: a, theirs: same}\n  - {ours: b, theirs: same}\n",
            numbered(("a", (1,)), ("b", (1,))),
            "tensor 'same': expected one source, got rule a -> same and rule b -> same",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(rules: str, ours: dict[str, Tensor], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        the_map(rules).apply(ours)


def test_parts_that_would_not_split_into_what_they_were_are_refused() -> None:
    theirs = numbered(("l.3.q", (5, 4)), ("l.3.k", (2, 4)), ("l.3.v", (1, 4)))
    with pytest.raises(Invalid, match=r"expected parts of \[4, 2, 2\], got \[5, 2, 1\]"):
        the_map(QKV).inverse().apply(theirs)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("format: 2\nrules: []", "test.yaml: expected format 1, got 2"),
        ("rules: []", "missing required field `format`"),
        ("format: 1\nrules: []", r"length >= 1.*\$.rules"),
        ("format: 1\nrule: []\nrules: [{ours: a, theirs: b}]", "unknown field `rule`"),
        ("format: 1\nrules: [{ours: a, theirs: b, step: []}]", r"unknown field `step`.*\$.rules\[0\]"),
        ("format: 1\nrules: [{ours: a, theirs: b, steps: [turn: 1]}]", r"unknown field `turn`.*\$.rules\[0\].steps"),
        (
            "format: 1\nrules: [{ours: a, theirs: b, steps: [{}]}]",
            "rule a -> b: step: expected one of permute, .* got none",
        ),
        (
            "format: 1\nrules: [{ours: a, theirs: b, steps: [{permute: [0], stack: {dim: 0, over: x}}]}]",
            "got permute and stack",
        ),
        (
            "format: 1\nrules: [{ours: a, theirs: b, steps: [permute: [0, 2]]}]",
            "test.yaml: rule a -> b: permute: expected each dim once",
        ),
        ("format: 1\nrules: [{ours: a, theirs: [b, c]}]", "expected steps that give 2 tensors, got 1"),
        (
            "format: 1\nrules: [{ours: a, theirs: [b, c], steps: [split: {dim: 0, sizes: [1, half]}]}]",
            "rule a -> b, c: size 'half': expected a number >= 1, 'rest', 'dim N' or a name under sizes",
        ),
        ("format: 1\nrules: [{ours: 'a{', theirs: b}]", "pattern 'a{': expected a name in which"),
        ("format: 1\nrules: [{ours: [], theirs: b}]", "rule nothing -> b: expected a name on each side"),
        (
            "format: 1\nrules: [{ours: 'a{x}', theirs: 'b{x}', steps: [stack: {dim: 0, over: x}]}]",
            r"expected the words \[\] in 'b\{x\}', got \['x'\]",
        ),
        (
            "format: 1\nrules: [{ours: 'a{x}', theirs: 'b{y}', "
            "steps: [stack: {dim: 0, over: x}, unstack: {dim: 0, over: y}]}]",
            "expected one stack or unstack",
        ),
        (
            "format: 1\nrules: [{ours: a, theirs: b, steps: [flatten: {dim: 0, sizes: [heads, rest]}]}]",
            "rule a -> b: size 'heads': expected a number >= 1, 'rest', 'dim N' or a name under sizes",
        ),
        ("format: 1\nrules: [{ours: a, theirs: b}]\nsizes: {rest: 1}", "size 'rest': expected a name of a-z"),
        ("format: 1\nrules: [{ours: a, theirs: b}]\nsizes: {x: 0}", r">= 1.*\$.sizes"),
        (
            "format: 1\nrules: [{ours: a, theirs: b, beside: 'c{x}'}]",
            r"expected words of \[\] in 'c\{x\}', got \['x'\]",
        ),
        ("format: 1\nformat: 1", "test.yaml"),
        ("- 1", "expected `object`"),
        ("", "test.yaml"),
    ],
)
def test_a_document_that_is_wrong_is_refused_with_the_place(document: str, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        decode_map(document.encode(), source="test.yaml")


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=100)
    | st.text(alphabet="format: 1\nrules[]{},ourstheir'\"&*!0", max_size=60).map(str.encode)
)
def test_rubbish_is_invalid_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_map(data, source="test.yaml")


def test_json_is_taken_too() -> None:
    document = b'{"format": 1, "rules": [{"ours": "a", "theirs": "b"}]}'
    assert list(decode_map(document, source="x").apply(numbered(("a", (1,))))) == ["b"]


@pytest.mark.parametrize("name", MAP_NAMES)
def test_the_maps_that_ship_are_readable(name: str) -> None:
    assert named_map(name).rules


def test_the_maps_of_the_documentation_are_readable_and_that_of_its_own_chapter_works() -> None:
    page = (Path(__file__).parents[3] / "docs" / "interop.md").read_text()
    documents = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    assert all(decode_map(document.encode(), source="interop.md").rules for document in documents)
    document = page.partition("## Name maps")[2].partition("```yaml\n")[2].partition("```")[0]
    ours = numbered(
        ("model/layers.0.attention.wqkv", (4, 8)),
        ("model/layers.0.experts.0.w", (2,)),
        ("model/layers.0.experts.1.w", (2,)),
        ("optim/m/x", (1,)),
    )
    names = decode_map(document.encode(), source="interop.md").apply(ours)
    attention = [f"model.layers.0.self_attn.{one}_proj.weight" for one in "qkv"]
    assert {name: one.shape for name, one in names.items()} == {
        **dict(zip(attention, [(4, 4), (2, 4), (2, 4)], strict=True)),
        "model.layers.0.experts.w": (2, 2),
    }


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        Invalid, match="expected one of weights, llama4-hf, llama4-meta, llama4-megatron, tiny-moe-hf, got 'llama5'"
    ):
        named_map("llama5")
