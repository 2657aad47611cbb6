from __future__ import annotations

import json
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import BehemothError, Invalid
from behemoth.base.ids import Step
from behemoth.spec.checkpoint import EveryInterval, EverySteps
from behemoth.spec.decode import decode_document, decode_run
from behemoth.spec.mesh import Mesh
from behemoth.spec.problem import InvalidRun, Problem
from behemoth.spec.workload import CommandWorkload, PythonWorkload
from spec.run_texts import document, workload


def refused(value: object) -> Problem:
    """The one problem of a document."""
    with pytest.raises(InvalidRun) as error:
        decode_document(value)
    (problem,) = error.value.problems
    return problem


def test_a_run_with_nothing_but_what_is_required_gets_the_told_defaults() -> None:
    run = decode_document(document())
    assert run.name == "tiny"
    assert run.mesh == Mesh(dp=4, edp=4)
    assert run.model is None
    assert run.checkpoint.every == EveryInterval(interval=timedelta(minutes=5))
    kept = run.checkpoint.retention
    assert (run.checkpoint.store, kept.keep_last, kept.every_steps, kept.hourly, kept.daily) == (None, 2, None, 0, 0)
    assert run.recovery.heartbeat_limit == timedelta(seconds=2.5)
    assert run.drill == ()


def test_both_forms_of_a_workload_are_told_apart_by_their_first_field() -> None:
    assert isinstance(decode_document(document()).workload, PythonWorkload)
    run = decode_document(document(workload={"command": ["sh", "-c", "true"], "steps": 3}))
    assert run.workload == CommandWorkload(command=("sh", "-c", "true"), steps=Step(3))


@pytest.mark.parametrize(
    ("sections", "path", "code", "reason", "hint"),
    [
        ({"preloads": 1}, "spec.preloads", "unknown-field", "got an unknown field", "spec.workload.preload?"),
        ({"steps": 1}, "spec.steps", "unknown-field", "expected one of nodes,", "did you mean spec.workload.steps?"),
        (
            {"workload": workload(env={"A": "1"})},
            "spec.workload.env",
            "unknown-field",
            "",
            "did you mean spec.workload.environment?",
        ),
        ({"checkpoints": {}}, "spec.checkpoints", "unknown-field", "", "did you mean spec.checkpoint?"),
        ({"mesh": {"dp": 4, "eedp": 2}}, "spec.mesh.eedp", "unknown-field", "expected one of tp,", "spec.mesh.edp?"),
        ({"nodes": None}, "spec.nodes", "missing-field", "got nothing", "behemoth explain spec.nodes"),
        ({"nodes": {"count": 4}}, "spec.nodes.gpus_per_node", "missing-field", "expected an integer from 1 to 64", ""),
        ({"nodes": 4}, "spec.nodes", "wrong-type", "got the number 4", ""),
        ({"nodes": {"count": "4", "gpus_per_node": 1}}, "spec.nodes.count", "wrong-type", "got '4'", "write 4 without"),
        ({"nodes": {"count": True, "gpus_per_node": 1}}, "spec.nodes.count", "wrong-type", "got true", ""),
        ({"nodes": {"count": 4.0, "gpus_per_node": 1}}, "spec.nodes.count", "wrong-type", "got the number 4", ""),
        ({"nodes": {"count": None, "gpus_per_node": 1}}, "spec.nodes.count", "wrong-type", "got null", ""),
        ({"nodes": {"count": 0, "gpus_per_node": 1}}, "spec.nodes.count", "out-of-range", "got the number 0", ""),
        ({"mesh": {"dp": 0}}, "spec.mesh.dp", "out-of-range", "expected an integer from 1", ""),
        ({"mesh": {"dp": 3}}, "spec.mesh", "mesh-ranks", "4 ranks of 2 nodes with 2 each, got 3", "spec.mesh.dp: 4"),
        ({"mesh": None}, "spec.mesh", "mesh-ranks", "got 1", "spec.mesh.dp: 4 would fit"),
        ({"mesh": {"dp": 4, "ep": 2}}, "spec.mesh", "mesh-product", "got 4 and 2 ranks per stage", "usually edp"),
        ({"mesh": {"dp": 4, "ep": 1}}, "spec.mesh", "mesh-product", "got 4 and 1", ""),
        ({"model": {"ref": "scot"}}, "spec.model.ref", "unknown-name", "got 'scot'", "did you mean scout?"),
        ({"model": {"ref": "scout", "inventory": "x"}}, "spec.model", "one-of", "got ref and inventory", ""),
        ({"model": "scout"}, "spec.model", "wrong-type", "either ref or inventory", "did you mean {ref: scout}?"),
        ({"model": {"inventory": ""}}, "spec.model.inventory", "pattern", "expected a path", ""),
        ({"workload": workload(command=["x"])}, "spec.workload", "one-of", "got entrypoint and command", ""),
        ({"workload": {"steps": 1}}, "spec.workload", "one-of", "got neither", ""),
        (
            {"workload": {"command": ["x"], "steps": 1, "preload": []}},
            "spec.workload.preload",
            "one-of",
            "only with entrypoint, got it with command",
            "",
        ),
        ({"workload": {"command": [], "steps": 1}}, "spec.workload.command", "wrong-type", "at least one item", ""),
        ({"workload": {"command": "x", "steps": 1}}, "spec.workload.command", "wrong-type", "got 'x'", "[x]"),
        ({"workload": {"command": ["x", ""], "steps": 1}}, "spec.workload.command[1]", "pattern", "not empty", ""),
        (
            {"workload": {"command": ["x", 1], "steps": 1}},
            "spec.workload.command[1]",
            "wrong-type",
            "",
            "quote it: '1'",
        ),
        ({"workload": {"entrypoint": "a:b"}}, "spec.workload.steps", "missing-field", "got nothing", ""),
        ({"workload": workload(steps=0)}, "spec.workload.steps", "out-of-range", "", ""),
        ({"workload": workload(entrypoint="a.b.c")}, "spec.workload.entrypoint", "pattern", "", "did you mean a.b:c?"),
        ({"workload": workload(entrypoint="a/b.py:c")}, "spec.workload.entrypoint", "pattern", "", "a.b:c"),
        ({"workload": workload(preload=["torch", "1x"])}, "spec.workload.preload[1]", "pattern", "got '1x'", ""),
        ({"workload": workload(args={"a-b": 1})}, "spec.workload.args.a-b", "wrong-name", "identifiers", ""),
        ({"workload": workload(args={"a": [1]})}, "spec.workload.args.a", "wrong-type", "got a list of 1", ""),
        ({"workload": workload(args={"a": float("nan")})}, "spec.workload.args.a", "wrong-type", "the number nan", ""),
        (
            {"workload": workload(environment={"A": 1})},
            "spec.workload.environment.A",
            "wrong-type",
            "",
            "quote it: '1'",
        ),
        ({"workload": workload(environment={"RANK": "1"})}, "spec.workload.environment.RANK", "wrong-name", "", ""),
        (
            {"workload": workload(environment={"BEHEMOTH_X": "1"})},
            "spec.workload.environment.BEHEMOTH_X",
            "wrong-name",
            "expected a name that Behemoth does not set itself",
            "",
        ),
        ({"workload": workload(environment={"a b": "1"})}, "spec.workload.environment['a b']", "wrong-name", "", ""),
        ({"workload": workload(environment={"A": "x\0"})}, "spec.workload.environment.A", "pattern", "NUL", ""),
        ({"checkpoint": {"every": 20}}, "spec.checkpoint.every", "wrong-type", "steps or interval", "{steps: 20}"),
        ({"checkpoint": {"every": {}}}, "spec.checkpoint.every", "one-of", "got neither", ""),
        ({"checkpoint": {"every": {"interval": 30}}}, "spec.checkpoint.every.interval", "missing-unit", "", "30s?"),
        ({"checkpoint": {"every": {"interval": "0s"}}}, "spec.checkpoint.every.interval", "out-of-range", "1s", ""),
        (
            {"checkpoint": {"retention": {"keep_last": 1}}},
            "spec.checkpoint.retention.keep_last",
            "out-of-range",
            "",
            "",
        ),
        ({"checkpoint": {"threads": 0}}, "spec.checkpoint.threads", "out-of-range", "from 1 to 256", ""),
        ({"checkpoint": {"store": "gs://bucket/x"}}, "spec.checkpoint.store", "not-supported-yet", "gs", "path"),
        ({"checkpoint": {"store": "s3:///x"}}, "spec.checkpoint.store", "store-url", "expected s3://BUCKET/PREFIX", ""),
        (
            {"checkpoint": {"store": "s3://me:half/key@b/x"}},
            "spec.checkpoint.store",
            "store-credentials",
            "no credentials",
            "",
        ),
        (
            {"checkpoint": {"store": "s3://me:key@b/x"}},
            "spec.checkpoint.store",
            "store-credentials",
            "no credentials",
            "",
        ),
        ({"checkpoint": {"store": "file://host/x"}}, "spec.checkpoint.store", "store-url", "", ""),
        ({"checkpoint": {"store": "~/x"}}, "spec.checkpoint.store", "store-url", "", "whole path"),
        ({"checkpoint": {"store": ""}}, "spec.checkpoint.store", "store-url", "", ""),
        ({"checkpoint": {"peer_copies": 2}}, "spec.checkpoint.peer_copies", "too-few-domains", "2 failure domains", ""),
        ({"checkpoint": {"peer_copies": 9}}, "spec.checkpoint.peer_copies", "out-of-range", "from 0 to 8", ""),
        ({"checkpoint": {"peer_rate": "0B"}}, "spec.checkpoint.peer_rate", "out-of-range", "got '0B'", "leave"),
        (
            {"checkpoint": {"local_disk": {"path": "nvme"}}},
            "spec.checkpoint.local_disk.path",
            "disk-path",
            "expected an absolute path on every node, got 'nvme'",
            "/nvme/behemoth",
        ),
        (
            {"checkpoint": {"local_disk": {"path": "s3://b/x"}}},
            "spec.checkpoint.local_disk.path",
            "disk-path",
            "s3",
            "",
        ),
        (
            {"checkpoint": {"local_disk": {"path": "~/x"}}},
            "spec.checkpoint.local_disk.path",
            "store-url",
            "",
            "~ is not expanded",
        ),
        (
            {"checkpoint": {"local_disk": {}}},
            "spec.checkpoint.local_disk.path",
            "missing-field",
            "expected an absolute path, got nothing",
            "",
        ),
        (
            {"checkpoint": {"store": "/fast/", "local_disk": {"path": "/fast"}}},
            "spec.checkpoint.local_disk.path",
            "disk-in-store",
            "another place than spec.checkpoint.store, got the same, '/fast'",
            "",
        ),
        (
            {"checkpoint": {"drain": {"to": "/slow"}, "local_disk": {"path": "/slow"}}},
            "spec.checkpoint.local_disk.path",
            "disk-in-store",
            "another place than spec.checkpoint.drain.to",
            "",
        ),
        (
            {"checkpoint": {"local_disk": {"path": "/nvme", "rate": "0B"}}},
            "spec.checkpoint.local_disk.rate",
            "out-of-range",
            "got '0B'",
            "leave it out for no limit",
        ),
        (
            {"checkpoint": {"local_disk": {"path": "/nvme"}, "durable": "local_disk"}},
            "spec.checkpoint.durable",
            "unknown-name",
            "expected one of store, drain, got 'local_disk'",
            "lost with its node",
        ),
        ({"checkpoint": {"peer_rate": 512}}, "spec.checkpoint.peer_rate", "missing-unit", "", "512B?"),
        ({"checkpoint": {"staging_budget": 512}}, "spec.checkpoint.staging_budget", "missing-unit", "", "512B?"),
        (
            {"placement": {"required": ["rack"]}},
            "spec.placement.required",
            "not-supported-yet",
            "not supported yet",
            "",
        ),
        ({"recovery": {"heartbeat_limit": "2s"}}, "spec.recovery.heartbeat_limit", "out-of-range", "got 2s", ""),
        ({"recovery": {"node_wait": "4GiB"}}, "spec.recovery.node_wait", "duration-unit", "got '4GiB'", "units are d"),
        ({"recovery": {"hang_floor": {"stp": "1m"}}}, "spec.recovery.hang_floor.stp", "unknown-field", "", "step?"),
        ({"recovery": {"hang_floor": {"step": "0s"}}}, "spec.recovery.hang_floor.step", "out-of-range", "", ""),
        ({"recovery": None, "drill": "x"}, "spec.drill", "wrong-type", "expected a list", "[x]"),
        ({"drill": ["kill rank 4 at step 4"]}, "spec.drill[0]", "drill-range", "a rank from 0 to 3, got 4", ""),
        ({"drill": ["lose node 3 at step 4"]}, "spec.drill[0]", "drill-range", "a node from 0 to 2, got 3", ""),
        ({"drill": ["hang rank 0 at step 100"]}, "spec.drill[0]", "drill-range", "from 1 to 99, got 100", ""),
        ({"drill": ["kill rank 0 at step 0"]}, "spec.drill[0]", "drill-range", "from 1 to 99, got 0", ""),
    ],
)
def test_what_is_wrong_is_refused_by_field_path(
    sections: dict[str, Any], path: str, code: str, reason: str, hint: str
) -> None:
    problem = refused(document(**sections))
    assert (problem.path, problem.code) == (path, code)
    assert reason in problem.reason
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("model", "ep", "fits"), [("tiny-moe", 2, True), ("tiny-moe", 3, False), ("maverick", 3, False)]
)
def test_expert_parallelism_must_divide_the_experts_of_the_model(model: str, ep: int, fits: bool) -> None:
    value = document(
        model={"ref": model}, nodes={"count": 1, "gpus_per_node": 6}, mesh={"dp": 6, "ep": ep, "edp": 6 // ep}
    )
    if fits:
        assert decode_document(value).mesh.ep == ep
        return
    problem = refused(value)
    assert problem.path == "spec.mesh.ep"
    assert "expected a divisor of the model's" in problem.reason
    assert "nearest smaller one is 2" in problem.hint


def test_the_envelope_is_held_to_its_version_kind_and_name() -> None:
    value = document() | {"apiVersion": "behemoth.dev/v1", "kind": "Run", "metadata": {"name": "My Run"}, "extra": 1}
    with pytest.raises(InvalidRun) as error:
        decode_document(value)
    hints = {problem.path: problem.hint for problem in error.value.problems}
    assert set(hints) == {"extra", "apiVersion", "kind", "metadata.name"}
    assert hints["metadata.name"] == "did you mean my-run?"
    assert hints["apiVersion"] == "did you mean behemoth.dev/v1alpha1?"


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a/b", "..", "a" * 64, "a\n", 7])
def test_a_name_that_is_no_dns_label_is_refused(name: object) -> None:
    assert refused(document() | {"metadata": {"name": name}}).path == "metadata.name"


@pytest.mark.parametrize("value", [None, [], "x", 1, {}])
def test_a_document_that_is_no_run_is_refused(value: object) -> None:
    with pytest.raises(InvalidRun):
        decode_document(value)


def test_all_problems_come_at_once_each_with_its_line() -> None:
    text = """\
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {name: tiny}
spec:
  nodes: {count: 2, gpus_per_node: two}
  workload:
    entrypoint: package.module:main
    step: 10
"""
    with pytest.raises(InvalidRun) as error:
        decode_run(text, source="tiny.yaml")
    places = [(problem.path, problem.mark and problem.mark[0]) for problem in error.value.problems]
    assert places == [
        ("spec.nodes.gpus_per_node", 5),
        ("spec.workload.step", 8),
        ("spec.workload.steps", 6),
    ]
    assert error.value.message.startswith("tiny.yaml: expected a valid run, got 3 problems\n  line 5: spec.nodes.gpus")
    assert error.value.code == "invalid-run"


def test_a_single_problem_is_one_sentence_with_its_place() -> None:
    text = json.dumps(document(mesh={"dp": 3}))
    with pytest.raises(InvalidRun) as error:
        decode_run(text, source="tiny.json")
    assert error.value.message.startswith("tiny.json:1:")
    assert ": spec.mesh: expected tp x cp x dp x pp to equal the 4 ranks" in error.value.message
    assert (error.value.code, error.value.hint) == ("mesh-ranks", "spec.mesh.dp: 4 would fit")


def test_a_refusal_is_invalid_and_survives_pickling() -> None:
    with pytest.raises(InvalidRun) as error:
        decode_run(json.dumps(document(mesh={"dp": 3})), source="tiny.json")
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301 - our own bytes, made on this line
    assert isinstance(again, InvalidRun)
    assert isinstance(again, Invalid)
    assert (again.message, again.hint, again.code) == (error.value.message, error.value.hint, error.value.code)
    assert again.problems == error.value.problems


def test_words_that_yaml_readers_take_differently_are_refused_unless_quoted() -> None:
    text = json.dumps(document()).replace('"steps": 100', '"steps": 0100, "args": {a: on, b: "on", c: 1e-3, d: 1:30}')
    with pytest.raises(InvalidRun) as error:
        decode_run(text)
    hints = {problem.path: problem.hint for problem in error.value.problems}
    assert hints == {
        "spec.workload.steps": "write 100",
        "spec.workload.args.a": "for text, quote it: 'on'",
        "spec.workload.args.d": "for text, quote it: '1:30'",
    }


def test_a_duration_written_like_a_clock_gets_the_right_spelling_as_a_hint() -> None:
    text = json.dumps(document(recovery={"node_wait": "X"})).replace('"X"', "1:30")
    with pytest.raises(InvalidRun) as error:
        decode_run(text)
    assert error.value.hint == "did you mean 1m30s?"


def test_a_form_that_cannot_be_told_names_the_unknown_field_too() -> None:
    with pytest.raises(InvalidRun) as error:
        decode_document(document(checkpoint={"every": {"seconds": 30}}))
    paths = [problem.path for problem in error.value.problems]
    assert paths == ["spec.checkpoint.every.seconds", "spec.checkpoint.every"]


def test_cadence_is_by_steps_or_by_time() -> None:
    by_steps = decode_document(document(checkpoint={"every": {"steps": 20}}))
    assert by_steps.checkpoint.every == EverySteps(steps=20)
    by_time = decode_document(document(checkpoint={"every": {"interval": "90s"}}))
    assert by_time.checkpoint.every == EveryInterval(interval=timedelta(seconds=90))


def test_a_field_that_is_not_supported_yet_may_be_written_with_its_default() -> None:
    assert decode_document(document(placement={"required": []}, checkpoint={"peer_copies": 0})).placement.required == ()


def test_a_file_url_becomes_the_path_that_it_names() -> None:
    run = decode_document(document(checkpoint={"store": "file:///data/my%20runs"}))
    assert run.checkpoint.store == "/data/my runs"


def test_an_s3_url_is_taken_as_it_stands_and_credentials_in_one_are_not_repeated() -> None:
    url = "s3://bucket/runs/é x?endpoint=http://127.0.0.1:9000&region=eu-north-1"
    assert decode_document(document(checkpoint={"store": url})).checkpoint.store == url
    problem = refused(document(checkpoint={"store": "s3://me:secret@bucket/x"}))
    assert "secret" not in f"{problem.reason} {problem.hint}"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["nodes", "workload", "model", "mesh", "checkpoint", "recovery", "placement", "drill"]), _JSON)
def test_no_value_in_any_section_ends_in_anything_but_a_run_or_a_refusal(name: str, value: Any) -> None:
    try:
        run = decode_document(document(**{name: value}))
    except InvalidRun:
        return
    assert run.name == "tiny"


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_text_ends_in_anything_but_a_refusal(text: str | bytes) -> None:
    with pytest.raises(BehemothError):
        decode_run(text)


@pytest.mark.parametrize(("value", "hint"), [("5m", "did you mean {interval: 5m}?"), (20, "did you mean {steps: 20}?")])
def test_a_bare_cadence_is_met_with_the_form_that_takes_it(value: object, hint: str) -> None:
    with pytest.raises(InvalidRun) as caught:
        decode_document(document(checkpoint={"every": value}))
    assert [problem.hint for problem in caught.value.problems] == [hint]
