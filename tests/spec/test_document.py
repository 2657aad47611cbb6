from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.spec.decode import decode_document, decode_run
from behemoth.spec.document import difference, fingerprint, to_document
from behemoth.spec.drill import parse_fault
from spec.run_texts import document, workload

_WORKLOADS = st.sampled_from(
    [
        workload(args={"rate": 0.5, "flag": True, "n": 1, "s": "x"}, environment={"A": "1"}, preload=["numpy"]),
        {"command": ["sh", "-c", "true"], "steps": 100},
    ]
)
_CHECKPOINTS = st.fixed_dictionaries(
    {},
    optional={
        "every": st.sampled_from([{"steps": 20}, {"interval": "90s"}]),
        "retention": st.fixed_dictionaries(
            {"keep_last": st.integers(2, 9)},
            optional={name: st.integers(1, 9) for name in ("every_steps", "hourly", "daily")},
        ),
        "store": st.sampled_from(["x/y", "/data", "file:///data"]),
        "save_limit": st.sampled_from(["30s", "1h30m", "1.5s"]),
    },
)
_MESHES = st.sampled_from([{"dp": 4}, {"tp": 2, "dp": 2}, {"dp": 4, "ep": 2, "edp": 2}])
_MODELS = st.sampled_from([None, {"ref": "tiny-moe"}, {"inventory": "model.json"}])


@given(workload=_WORKLOADS, checkpoint=_CHECKPOINTS, mesh=_MESHES, model=_MODELS)
def test_reading_the_canonical_document_gives_the_run_back(**sections: Any) -> None:
    run = decode_document(document(**sections, drill=["kill rank 1 at step 5"]))
    canonical = to_document(run)
    assert decode_document(canonical) == run
    assert decode_run(json.dumps(canonical)) == run
    assert to_document(decode_document(canonical)) == canonical


def test_the_canonical_document_names_the_defaults() -> None:
    spec: Any = to_document(decode_document(document()))["spec"]
    assert spec["checkpoint"]["every"] == {"interval": "5m"}
    assert spec["recovery"]["heartbeat_limit"] == "2.5s"
    assert spec["mesh"]["edp"] == 4


def test_a_difference_names_each_field_with_both_values() -> None:
    old = decode_document(document(checkpoint={"store": "x"}))
    new = decode_document(document(workload=workload(steps=200), recovery={"node_wait": "1h"}))
    assert [str(change) for change in difference(old, new)] == [
        "spec.workload.steps: 100 -> 200",
        'spec.checkpoint.store: "x" -> absent',
        'spec.recovery.node_wait: "10m" -> "1h"',
    ]
    assert fingerprint(old) != fingerprint(new)


def test_the_same_run_in_other_words_differs_in_nothing() -> None:
    old = decode_document(document(recovery={"node_wait": "600s"}))
    new = decode_document(document(mesh={"dp": 4, "edp": 4}))
    assert difference(old, new) == []
    assert fingerprint(old) == fingerprint(new)


def test_another_drill_is_the_same_run() -> None:
    run = decode_document(document())
    drilled = dataclasses.replace(run, drill=(parse_fault("kill rank 1 at step 5"),))
    assert difference(run, drilled) == []
    assert fingerprint(run) == fingerprint(drilled)


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), ("1", 1)])
def test_arguments_of_another_type_differ(old: object, new: object) -> None:
    runs = [decode_document(document(workload=workload(args={"a": value}))) for value in (old, new)]
    assert [change.path for change in difference(*runs)] == ["spec.workload.args.a"]
    assert fingerprint(runs[0]) != fingerprint(runs[1])
