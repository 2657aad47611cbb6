"""What an s3:// URL names, and that it never holds a secret."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Invalid
from behemoth.storage.s3_place import S3Place, parse_s3


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", S3Place(bucket="bucket", prefix="")),
        ("S3://bucket/", S3Place(bucket="bucket", prefix="")),
        ("s3://my.bucket-1/runs/é x/", S3Place(bucket="my.bucket-1", prefix="runs/é x")),
        ("s3://bucket/me@home:1", S3Place(bucket="bucket", prefix="me@home:1")),
        ("s3://bucket/100%25", S3Place(bucket="bucket", prefix="100%25")),
        (
            "s3://bucket/run?endpoint=https%3A%2F%2Fs3.example.org%3A9000/&region=eu-west-1&addressing=path",
            S3Place(
                bucket="bucket",
                prefix="run",
                endpoint="https://s3.example.org:9000",
                region="eu-west-1",
                addressing="path",
            ),
        ),
        (
            "s3://bucket/run?endpoint=http://[::1]:9000",
            S3Place(bucket="bucket", prefix="run", endpoint="http://[::1]:9000"),
        ),
    ],
)
def test_bucket_prefix_and_the_way_there(url: str, place: S3Place) -> None:
    assert parse_s3(url) == place


def test_keys_lie_below_the_prefix_and_in_a_whole_bucket_they_are_its_own() -> None:
    assert parse_s3("s3://bucket/runs/x/").key_of("steps/a") == "runs/x/steps/a"
    assert parse_s3("s3://bucket").key_of("steps/a") == "steps/a"


def test_a_place_is_told_as_the_url_without_the_way_there() -> None:
    assert str(parse_s3("s3://bucket/run?region=eu-west-1")) == "s3://bucket/run"
    assert str(parse_s3("s3://bucket")) == "s3://bucket"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://", "the name of a bucket"),
        ("s3://Bucket/run", "the name of a bucket"),
        ("s3://b/run", "the name of a bucket"),
        ("s3://bucket/a//b", "segments other than"),
        ("s3://bucket/../b", "segments other than"),
        ("s3://bucket/run#1", "no '#'"),
        ("s3://bucket/run?region", "name=value pairs"),
        ("s3://bucket/run?region=", "once and with a value"),
        ("s3://bucket/run?region=a&region=b", "once and with a value"),
        ("s3://bucket/run?addressing=dns", "expected addressing auto or path or virtual"),
        ("s3://bucket/run?endpoint=http://host:port", "expected an endpoint such as"),
        ("s3://bucket/run?region=eu west", "expected a region such as"),
        ("s3://bucket/run?endpoint=s3.example.org", "expected an endpoint such as"),
        ("s3://bucket/run?endpoint=http://s3.example.org/path", "expected an endpoint such as"),
        ("s3://bucket/run?endpoint=http://[::1", "expected an endpoint such as"),
        ("s3://bucket/run?endpoint=http://host%E2%84%80path", "expected an endpoint such as"),
    ],
)
def test_anything_else_is_refused(url: str, expected: str) -> None:
    with pytest.raises(Invalid, match=expected):
        parse_s3(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:sesame@bucket/run",
        "s3://sesame@bucket/run",
        "s3://bucket/run?secret_key=sesame",
        "s3://bucket/run?region=eu-west-1&aws_session_token=sesame",
        "s3://bucket/run?sesame",
        "s3://bucket/run?endpoint=http://user:sesame@host:9000",
        "s3://bucket/run?endpoint=user:sesame@host:9000",
        "s3://bucket/run?endpoint=http://host/?key=sesame",
        "s3://bucket/run?endpoint=sesame",
        "s3://bucket/run?region=sesame sesame",
        "s3://AKIAEXAMPLE:sesame/with/slash@bucket/run",
        "s3://AKIAEXAMPLE:open/sesame@bucket/run",
        "s3://Sesame:sesame/run",
        "s3://sesame+/key@bucket/run",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_s3(url)
    assert "sesame" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"
