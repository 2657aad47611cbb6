"""More of DCP than its defaults: optimizers, groups of ranks, coordinators, cached plans, a rank that is elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from dcp.programs import told_by
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in

ELSEWHERE = "a rank elsewhere"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = told_by("groups_program", str(tmp_path_factory.mktemp("groups")))
    return told


@pytest.mark.parametrize(
    "case",
    [
        "fused",
        "lr is a tensor",
        "no optimizer state",
        "tied",
        "mesh of two",
        "two boxes of each rank",
        "full state of rank 0",
        "some ranks",
        "lowest rank",
        "one rank",
        "another coordinator",
        "cached plans",
    ],
)
def test_what_such_a_program_saved_comes_back(told: list[dict[str, Any]], case: str) -> None:
    assert [rank[case] for rank in told] == [True] * 4


def test_a_rank_that_is_elsewhere_is_named_to_all_and_nothing_is_committed(told: list[dict[str, Any]]) -> None:
    expect_refused(told)


def expect_refused(told: list[dict[str, Any]]) -> None:
    for rank in told:
        refusals = rank[ELSEWHERE]["told"]
        assert list(refusals) == ["1"]
        assert "elsewhere: expected the one in which the coordinator began write" in refusals["1"]
        assert rank[ELSEWHERE]["steps"] == []
        assert rank[ELSEWHERE]["well"]


@pytest.mark.longer
def test_they_do_so_in_a_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    told = told_by("groups_program", f"s3://{BUCKET}/groups")
    expect_refused(told)
    assert [{case: same for case, same in rank.items() if same is not True} for rank in told] == [
        {ELSEWHERE: rank[ELSEWHERE]} for rank in told
    ]
