"""From a URL to a store."""

from pathlib import Path

import pytest

from behemoth.base.errors import Invalid
from behemoth.ports import UploadsParts
from behemoth.storage.open import is_nested, open_files, open_store


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("/data/run", "/data/run"),
        ("file:///data/run", "/data/run"),
        ("file://localhost/data/run/", "/data/run"),
        ("FILE:///data/run", "/data/run"),
        ("file:///data/with%20space%23", "/data/with space#"),
        ("/data/100%25#x?y", "/data/100%25#x?y"),
    ],
)
def test_paths_and_file_urls_name_directories(url: str, root: str) -> None:
    assert open_store(url).root == root


def test_a_relative_path_counts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("runs/x").root == str(tmp_path / "runs" / "x")


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_store("~/x").root == "/home/someone/x"


def test_a_bucket_is_opened_without_a_request() -> None:
    store = open_store("s3://bucket/run?endpoint=http://127.0.0.1:1")
    assert isinstance(store, UploadsParts)
    assert store.root == "s3://bucket/run"
    store.close()


@pytest.mark.parametrize(
    ("url", "other", "is_so"),
    [
        ("/data/run", "file:///data/run/", True),
        ("/data/run", "/data/run/second", True),
        ("/data/run/../run/a", "/data/run", True),
        ("/data/run", "/data/run-2", False),
        ("s3://bucket/run", "s3://bucket/run/second?region=x", True),
        ("s3://bucket", "s3://bucket/run", True),
        ("s3://bucket/run", "s3://bucket/run-2", False),
        ("s3://bucket/run", "/bucket/run", False),
    ],
)
def test_a_place_within_another_is_told_from_one_apart(url: str, other: str, is_so: bool) -> None:
    assert is_nested(url, other) is is_so
    assert is_nested(other, url) is is_so


def test_a_link_hides_no_place_within_another(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert is_nested(str(tmp_path / "store"), str(tmp_path / "link" / "second"))


def test_what_only_a_directory_can_do_refuses_a_bucket() -> None:
    with pytest.raises(Invalid, match=r"s3://bucket/run: expected a path or file:///path here, got s3://"):
        open_files("s3://bucket/run")


@pytest.mark.parametrize("url", ["", "gs://b/x", "http://h/x", "file://host/x", "file://relative", "file:///x?y=1"])
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="expected"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:sesame@host/bucket/x?X-Amz-Signature=sesame",
        "http://host/x?token=sesame",
        "file://user:sesame@host/x",
        "file:///x?X-Amz-Signature=sesame",
        "file://?sesame",
        "file://sesame[/x",
        "s3://bucket/x?endpoint=http://sesame[",
    ],
)
def test_of_a_url_that_is_refused_nothing_is_repeated_that_may_be_a_secret(url: str) -> None:
    with pytest.raises(Invalid, match=r"expected .*, got") as caught:
        open_store(url)
    assert "sesame" not in f"{caught.value.message} {caught.value.hint}"
