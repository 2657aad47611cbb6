"""What a checkpoint id names."""

from __future__ import annotations

from pathlib import Path

import pytest

from behemoth.base.errors import Invalid
from behemoth.dcp import BehemothReader, BehemothWriter
from behemoth.dcp.address import parse_address


@pytest.mark.parametrize(
    ("text", "url", "step"),
    [
        ("out/step-100", "out", 100),
        ("out/checkpoint/step-100/", "out/checkpoint", 100),
        ("/data/iter_0000100", "/data", 100),
        ("out/global_step100", "out", 100),
        ("out/checkpoint-7", "out", 7),
        ("out/7", "out", 7),
        ("/7", "/", 7),
        ("step-0", ".", 0),
        ("file:///data/step_12", "file:///data", 12),
        ("s3://bucket/run/step-12?region=eu-west-1", "s3://bucket/run?region=eu-west-1", 12),
        ("s3://bucket/run", "s3://bucket/run", None),
        ("s3://bucket/step-12", "s3://bucket", 12),
        ("s3://step-12", "s3://step-12", None),
        ("S3://ckpt1/?endpoint=http://host", "S3://ckpt1/?endpoint=http://host", None),
        ("file:///step-1", "file:///", 1),
        ("out/checkpoints", "out/checkpoints", None),
        ("runs/llama4", "runs/llama4", None),
        ("runs/llama-4", "runs/llama-4", None),
        ("out/step-12b", "out/step-12b", None),
    ],
)
def test_an_id_that_ends_in_a_step_names_it_in_the_store_above(text: str, url: str, step: int | None) -> None:
    address = parse_address(text)
    assert (address.url, address.step) == (url, step)


def test_a_bare_step_is_one_of_the_given_store() -> None:
    assert parse_address("step-5", store="/data/run").url == "/data/run"
    assert parse_address("other/step-5", store="/data/run").url == "other"


def test_a_path_object_is_an_id() -> None:
    assert parse_address(Path("out") / "step-3").step == 3


def test_a_step_beside_an_id_must_not_contradict_it() -> None:
    assert parse_address("out").at(5).step == 5
    assert parse_address("out/step-5").at(5).step == 5
    with pytest.raises(Invalid, match="expected step 5, which the id names, got 6"):
        parse_address("out/step-5").at(6)


@pytest.mark.parametrize("text", ["out/step-1234567890", "", "gopher://x/step-1", "s3://key@bucket/step-1"])
def test_an_id_that_no_store_can_have_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_address(text)


def test_a_step_of_ten_digits_is_refused_when_it_is_given_by_itself() -> None:
    with pytest.raises(Invalid, match="999999999"):
        parse_address("out").at(10**9)


def test_writer_and_reader_take_buckets_and_nothing_unknown() -> None:
    for adapter in (BehemothReader, BehemothWriter):
        assert adapter.validate_checkpoint_id("s3://bucket/run")
        assert not adapter.validate_checkpoint_id("gopher://bucket/run")
    assert BehemothWriter("s3://bucket/run/step-1").checkpoint_id == "s3://bucket/run step 1"
