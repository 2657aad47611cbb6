"""A small valid run for the tests of `spec/`, as a document that each test changes where it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def document(**spec: Any) -> dict[str, Any]:
    """A valid run of 2 nodes x 2 ranks; `spec` replaces whole sections, None removes one."""
    sections: dict[str, Any] = {
        "nodes": {"count": 2, "gpus_per_node": 2, "spares": 1},
        "workload": {"entrypoint": "package.module:main", "steps": 100},
        "mesh": {"dp": 4},
        **spec,
    }
    return {
        "apiVersion": "behemoth.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "tiny"},
        "spec": {name: section for name, section in sections.items() if section is not None},
    }


def workload(**fields: Any) -> Mapping[str, Any]:
    return {"entrypoint": "package.module:main", "steps": 100, **fields}
