from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2.5s", 2.5),
        ("1.5h", 5400),
        ("1m2.25s", 62.25),
        ("1d", 86400),
        ("7us", 0.000007),
        ("0s", 0),
        ("10000d", 864_000_000),
    ],
)
def test_a_duration_is_read_with_exact_arithmetic(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("30", "duration-unit", "did you mean 30s?"),
        ("30sec", "duration-unit", "did you mean 30s?"),
        ("30 s", "duration-unit", "did you mean 30s?"),
        ("1h 30m", "duration-unit", "did you mean 1h30m?"),
        ("5 minutes", "duration-unit", "did you mean 5m?"),
        ("5M", "duration-unit", "did you mean 5m?"),
        ("1h30", "duration-unit", "did you mean 1h30s?"),
        ("1:30", "duration-unit", "did you mean 1m30s?"),
        ("1:30:00", "duration-unit", "did you mean 1h30m0s?"),
        ("4GiB", "duration-unit", "units are d, h, m, s, ms, us"),
        ("", "duration-unit", ""),
        ("-5s", "duration-unit", ""),
        ("s", "duration-unit", ""),
        (".5s", "duration-unit", ""),
        ("1e3s", "duration-unit", ""),
        ("٣s", "duration-unit", ""),
        ("30m1h", "duration-order", ""),
        ("1s1s", "duration-order", ""),
        ("1.5h1m", "duration-order", ""),
        ("0.5us", "duration-precision", ""),
        ("10001d", "duration-range", ""),
        ("9" * 39 + "d", "duration-range", ""),
        ("9" * 4000 + "d", "duration-unit", ""),
    ],
)
def test_a_wrong_duration_is_refused_with_the_nearest_right_one(text: str, code: str, hint: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_duration(text, name="recovery.node_wait")
    assert refused.value.code == code
    assert refused.value.message.startswith("recovery.node_wait: expected a duration")
    assert len(refused.value.message) < 200
    if hint:
        assert refused.value.hint == hint


def test_a_number_without_a_unit_is_named_as_such() -> None:
    with pytest.raises(Invalid, match="got '30' without a unit"):
        parse_duration("30")


@given(st.integers(min_value=0, max_value=10_000 * 86_400_000_000))
def test_reading_a_formatted_duration_gives_it_back(microseconds: int) -> None:
    duration = timedelta(microseconds=microseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(seconds=2.5), "2.5s"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(microseconds=12), "12us"),
        (timedelta(hours=24), "1d"),
        (timedelta(hours=1, milliseconds=1), "1h0.001s"),
    ],
)
def test_durations_are_written_as_people_write_them(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


def test_a_negative_value_is_not_formatted() -> None:
    with pytest.raises(ValueError, match="at least 0s"):
        format_duration(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="at least 0 bytes"):
        format_size(-1)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4GiB", 4 << 30), ("100MB", 100_000_000), ("1.5KiB", 1536), ("512B", 512), ("0B", 0), ("2TiB", 2 << 40)],
)
def test_a_size_is_read_in_its_own_base(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("512", "size-unit", "did you mean 512B?"),
        ("4G", "size-unit", "did you mean 4GB?"),
        ("4Gi", "size-unit", "did you mean 4GiB?"),
        ("4gib", "size-unit", "did you mean 4GiB?"),
        ("4 GiB", "size-unit", "did you mean 4GiB?"),
        ("4 bytes", "size-unit", "did you mean 4B?"),
        ("30s", "size-unit", "units are"),
        ("1GiB1MiB", "size-unit", ""),
        ("-1B", "size-unit", ""),
        ("0.5B", "size-precision", ""),
        ("8192PiB", "size-range", ""),
    ],
)
def test_a_wrong_size_is_refused_with_the_nearest_right_one(text: str, code: str, hint: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_size(text)
    assert refused.value.code == code
    assert refused.value.hint.startswith(hint)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_reading_a_formatted_size_gives_it_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(4 << 30, "4GiB"), (100_000_000, "100MB"), (513, "513B"), (0, "0B"), (1 << 20, "1MiB")]
)
def test_sizes_are_written_in_the_largest_exact_unit(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
