"""Of all tests: the S3 server, started once in each process of pytest and only when a test needs it; a Ray for a
module; how long hypothesis searches: the same bounded examples for everyone, without a clock, and many random ones
under `-m longer`; how long a test of the longer suite may take; ctrl-C as a terminal has it; and bytecode for the
processes that tests start."""

import compileall
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from behemoth.base.ids import NodeId
from behemoth.ports import Runtime
from servers.s3_server import S3Server, s3_server
from servers.versitygw_binary import built

settings.register_profile(
    "bounded",
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("bounded")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As whoever is started in the background of a shell finds it, and leaves it to processes of its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGER_TIMEOUT_S = 3_600
"""Ends a hang, measures nothing: several times what the longest of them takes on two cores that others use as well."""


def pytest_sessionstart() -> None:
    """Where Python is told to write no bytecode, each of the thousands of processes that tests start would compile all
    that it imports."""
    if sys.dont_write_bytecode:
        for folder in ("orchestrator", "cli", "tests"):
            compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("longer"):
            item.add_marker(pytest.mark.timeout(LONGER_TIMEOUT_S))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The server is built before the first test, since no test may take as long."""
    if (
        any("s3" in getattr(item, "fixturenames", ()) for item in session.items)
        and not session.config.option.collectonly
    ):
        built()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket, in which each test takes a prefix of its own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="module")
def embedded_ray() -> Iterator[Runtime]:
    """A real Ray with two logical nodes on this machine; `rayrt.borrowed` lends it to whoever would close it."""
    from behemoth.rayrt.runtime import embed_ray

    runtime = embed_ray([NodeId("n0"), NodeId("n1")])
    yield runtime
    runtime.close()
