from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.spec.problem import InvalidRun
from behemoth.spec.text import MAX_TEXT_BYTES, Ambiguous, read_document


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("", "yaml-empty", "f.yaml:1:1: "),
        ("# only a comment\n", "yaml-empty", "f.yaml:"),
        ("a: [1", "yaml-syntax", "f.yaml:1:"),
        ("a: 1\n b: 2", "yaml-syntax", "f.yaml:2:"),
        ("a:\n\tb: 1", "yaml-syntax", "f.yaml:2:1: "),
        ("a: 1\n---\nb: 2", "yaml-documents", "f.yaml:2:1: "),
        ("a: 1\nb: 2\na: 3", "yaml-duplicate", "f.yaml:3:1: a: expected the field once"),
        ("a: {b: 1, 'b': 2}", "yaml-duplicate", "f.yaml:1:11: a.b: "),
        ("a: &x 1\nb: *x", "yaml-alias", "f.yaml:1:4: a: "),
        ("b: *x", "yaml-alias", "f.yaml:1:4: b: "),
        ("a: !!python/object/apply:os.system [ls]", "yaml-tag", "f.yaml:1:4: a: "),
        ("a: !!str 5", "yaml-tag", "f.yaml:1:4: a: "),
        ("? [1]\n: 2", "yaml-key", "f.yaml:1:3: "),
        ("[" * 100 + "]" * 100, "yaml-depth", "f.yaml:1:"),
        ("[" * 100_000, "yaml-depth", "f.yaml:1:"),
        ("a: \x00", "yaml-syntax", "f.yaml: "),
        ("#" * (MAX_TEXT_BYTES + 1), "yaml-size", "f.yaml: expected at most"),
        (b"a: \xff", "yaml-encoding", "f.yaml: expected UTF-8 text, got byte 0xff at offset 3"),
    ],
)
def test_a_malformed_text_is_refused_with_its_place(text: str | bytes, code: str, place: str) -> None:
    with pytest.raises(InvalidRun) as error:
        read_document(text, source="f.yaml")
    assert error.value.code == code
    assert error.value.message.startswith(place)
    assert error.value.hint or code not in ("yaml-syntax", "yaml-encoding")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("~", None),
        ("30s", "30s"),
        ("2026-01-01", "2026-01-01"),
        ("'on'", "on"),
        ('"010"', "010"),
        ("y", "y"),
        (".inf", ".inf"),
        ("9" * 50, "9" * 50),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)
def test_plain_words_are_read_by_the_core_schema(text: str, value: object) -> None:
    got = read_document(text, source="f").value
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize("word", ["on", "Off", "yes", "NO", "010", "0o17", "0b11", "1:30", "190:20:30", "1_000"])
def test_words_on_which_yaml_versions_differ_are_kept_apart(word: str) -> None:
    value = read_document(word, source="f").value
    assert isinstance(value, Ambiguous)
    assert value.text == word


def test_every_field_has_its_place() -> None:
    marks = read_document("a:\n  - b: 1\n  - 'c d': 2\n", source="f").marks
    assert marks["a[0].b"] == (2, 5)
    assert marks["a[1]['c d']"] == (3, 5)


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_document(b"\xef\xbb\xbfa: 1", source="f").value == {"a": 1}


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t01", max_size=60))
def test_no_text_ends_in_anything_but_a_document_or_a_refusal(text: str) -> None:
    try:
        document = read_document(text, source="f")
    except InvalidRun:
        return
    assert document.marks
