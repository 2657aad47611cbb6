from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from behemoth.base.errors import NotFound
from behemoth.spec.decode import decode_document, decode_run
from behemoth.spec.document import to_document
from behemoth.spec.openapi import openapi
from behemoth.spec.reference import BEGIN, END, markdown
from behemoth.spec.schema import explain, walk
from spec.run_texts import document

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_valid_run_by_decoder_and_schema(path: Path) -> None:
    run = decode_run(path.read_bytes(), source=path.name)
    assert run.name == path.stem
    jsonschema.validate(yaml.safe_load(path.read_text()), openapi())
    jsonschema.validate(to_document(run), openapi())


def test_the_examples_are_there() -> None:
    assert {path.stem for path in EXAMPLES} >= {"tiny-moe", "numpy", "command"}


@pytest.mark.parametrize(
    "sections",
    [
        {"nodes": {"count": 0, "gpus_per_node": 1}},
        {"recovery": {"node_wait": "30"}},
        {"recovery": {"node_wait": 30}},
        {"model": {"ref": "x"}},
        {"model": {"ref": "scout", "inventory": "x"}},
        {"drill": ["kill rank"]},
        {"workload": {"steps": 1}},
    ],
)
def test_the_open_schema_refuses_what_it_can_tell(sections: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document(**sections), openapi())


def test_the_open_schema_has_no_default_that_depends_on_other_fields() -> None:
    mesh = openapi()["properties"]["spec"]["properties"]["mesh"]
    assert all("default" not in axis for axis in mesh["properties"].values())


def test_every_field_is_explained() -> None:
    docs = list(walk(explain()))
    assert len(docs) > 50
    assert all(doc.doc.endswith(".") and doc.type and doc.expected for doc in docs)
    assert len({doc.path for doc in docs}) == len(docs)


def test_an_explanation_tells_default_unit_and_support() -> None:
    limit = explain("spec.recovery.heartbeat_limit")
    assert (limit.type, limit.default, limit.unit, limit.required) == ("duration", "2.5s", "time", False)
    assert not explain("spec.placement.required").supported
    assert explain("spec.workload.preload").only_with == "entrypoint"
    assert explain("spec.nodes.count").required


def test_a_default_that_is_told_is_the_default_that_is_used() -> None:
    used: Any = to_document(decode_document(document(mesh={"dp": 4, "edp": 4})))
    for doc in walk(explain("spec.recovery")):
        held = used
        for name in doc.path.split("."):
            held = held[name]
        assert held == doc.default


@pytest.mark.parametrize(
    ("path", "hint"), [("spec.mesh.eedp", "spec.mesh.edp"), ("steps", "spec.workload.steps"), ("mesh", "spec.mesh")]
)
def test_an_unknown_field_is_not_found_with_the_nearest_one(path: str, hint: str) -> None:
    with pytest.raises(NotFound) as error:
        explain(path)
    assert error.value.hint == f"did you mean {hint}?"


def test_the_reference_page_is_written_from_the_schema() -> None:
    page = (ROOT / "docs" / "spec.md").read_text()
    assert page[page.index(BEGIN) : page.index(END) + len(END) + 1] == markdown()
