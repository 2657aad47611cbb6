"""Every adapter of the Runtime port passes the suite that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.base.ids import NodeId
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.rayrt.runtime import RayRuntime, embed_ray
from behemoth.testing.runtime import RuntimeConformance, check_close_leaves_nothing

NODES = [NodeId("n0"), NodeId("n1"), NodeId("n2")]


class TestSubprocessRuntime(RuntimeConformance):
    @pytest.fixture
    def runtime(self) -> Iterator[SubprocessRuntime]:
        runtime = SubprocessRuntime(NODES)
        yield runtime
        runtime.close()

    def test_close_leaves_no_process(self, tmp_path: Path) -> None:
        check_close_leaves_nothing(SubprocessRuntime(NODES), tmp_path)


class TestEmbeddedRayRuntime(RuntimeConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Iterator[RayRuntime]:
        runtime = embed_ray(NODES)
        yield runtime
        runtime.close()
