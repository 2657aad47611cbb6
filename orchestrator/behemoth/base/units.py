"""Durations and sizes as people write them: `30s`, `1h30m`, `250ms`, `4GiB`, `100MB`.

A number without a unit is refused, because nobody can tell what it meant. Texts are read with exact arithmetic, so that
reading what was formatted gives the same value. Numbers rounded for the eye are the business of the command line's
views, not of this module.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction

from behemoth.base.errors import Invalid

DURATION_EXAMPLES = "30s, 5m, 1h30m or 250ms"
SIZE_EXAMPLES = "4GiB, 100MB or 512B"
DURATION_PATTERN = r"([0-9]+(\.[0-9]+)?(d|h|m|s|ms|us))+"
SIZE_PATTERN = r"[0-9]+(\.[0-9]+)?(B|[KMGTP]i?B)"

_DURATION_UNITS: dict[str, int] = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
"""Microseconds, longest first."""
_SIZE_UNITS: dict[str, int] = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGTP", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTP", start=1)},
}
_LONGEST_DURATION = timedelta(days=10_000)
_LARGEST_SIZE_BYTES = 2**63 - 1
_LONGEST_TEXT = 40
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([^\W\d_]*) ?")
_SPOKEN_UNITS = {
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("msec", "msecs", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("usec", "usecs", "micros", "microsecond", "microseconds", "µs", "μs"), "us"),
    **dict.fromkeys(("byte", "bytes", "b"), "B"),
}


def parse_duration(text: str, *, name: str = "duration") -> timedelta:
    """Read a duration: numbers with units d, h, m, s, ms, us, longest unit first, only the last one with a fraction.

    `name` opens the message of an error. Raises Invalid; its hint is the nearest text that would be read.
    """
    parts = _parts(text)
    hint = _hint(parts, _DURATION_UNITS, sole="s") if parts else _clock_hint(text)
    if not parts or " " in text or any(unit not in _DURATION_UNITS for _, unit in parts):
        raise _refused(name, f"a duration such as {DURATION_EXAMPLES}", text, hint, "duration-unit")
    order = [list(_DURATION_UNITS).index(unit) for _, unit in parts]
    if order != sorted(set(order)) or any("." in number for number, _ in parts[:-1]):
        expected = "a duration with its longest unit first, each unit once, a fraction only in the last one"
        raise _refused(name, expected, text, "", "duration-order")
    microseconds = sum(Fraction(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if microseconds.denominator != 1:
        raise _refused(name, "a duration in whole microseconds", text, "", "duration-precision")
    if microseconds > _LONGEST_DURATION // timedelta(microseconds=1):
        raise _refused(name, f"a duration of at most {_LONGEST_DURATION.days}d", text, "", "duration-range")
    return timedelta(microseconds=int(microseconds))


def format_duration(duration: timedelta) -> str:
    """Write a duration exactly, such that `parse_duration` reads it back: `1m30s`, `2.5s`, `250ms`, `0s`.

    Raises ValueError for a negative one.
    """
    rest_us = duration // timedelta(microseconds=1)
    if rest_us < 0:
        raise ValueError(f"duration: expected at least 0s, got {duration.total_seconds()} s")
    for unit in ("ms", "us"):
        size = _DURATION_UNITS[unit]
        if 0 < rest_us < 1000 * size and rest_us % size == 0:
            return f"{rest_us // size}{unit}"
    text = ""
    for unit in ("d", "h", "m"):
        count, rest_us = divmod(rest_us, _DURATION_UNITS[unit])
        text += f"{count}{unit}" if count else ""
    if rest_us == 0 and text:
        return text
    whole, micros = divmod(rest_us, 1_000_000)
    fraction = f".{micros:06d}".rstrip("0") if micros else ""
    return f"{text}{whole}{fraction}s"


def parse_size(text: str, *, name: str = "size") -> int:
    """Read a size in bytes: one number with a unit, B, KB..PB (powers of 1000) or KiB..PiB (powers of 1024).

    `name` opens the message of an error. Raises Invalid; its hint is the nearest text that would be read.
    """
    parts = _parts(text)
    if len(parts) != 1 or " " in text or parts[0][1] not in _SIZE_UNITS:
        hint = _hint(parts, _SIZE_UNITS, sole="B") if len(parts) == 1 else ""
        raise _refused(name, f"a size such as {SIZE_EXAMPLES}", text, hint, "size-unit")
    number, unit = parts[0]
    size = Fraction(number) * _SIZE_UNITS[unit]
    if size.denominator != 1:
        raise _refused(name, "a size in whole bytes", text, "", "size-precision")
    if size > _LARGEST_SIZE_BYTES:
        raise _refused(name, "a size below 8192PiB", text, "", "size-range")
    return int(size)


def parse_some_size(text: str, *, name: str = "size", hint: str, code: str, least: str = "1B") -> int:
    """Read a size of at least one byte, which messages call `least`, as `parse_size` reads it.

    Raises Invalid as that does, and for 0, with any unit or none, with `hint` and `code`: who is asked for the unit
    first is refused once more.
    """
    is_zero = "0" in text and not text.strip("0.")
    size_bytes = 0 if is_zero else parse_size(text, name=name)
    if size_bytes == 0:
        raise Invalid(f"{name}: expected at least {least}, got {text!r}", hint=hint, code=code)
    return size_bytes


def parse_rate(text: str, *, name: str = "rate", hint: str = "for example 200MiB", code: str = "out-of-range") -> int:
    """Read bytes a second, as `parse_some_size` reads bytes."""
    return parse_some_size(text, name=name, hint=hint, code=code, least="1B a second")


def format_size(size_bytes: int) -> str:
    """Write a size exactly, in the unit that gives the smallest whole number: `4GiB`, `100MB`, `513B`.

    Raises ValueError for a negative one.
    """
    if size_bytes < 0:
        raise ValueError(f"size: expected at least 0 bytes, got {size_bytes}")
    exact = [(unit, size) for unit, size in _SIZE_UNITS.items() if size_bytes % size == 0 and size_bytes >= size]
    unit, size = max(exact, key=lambda item: item[1], default=("B", 1))
    return f"{size_bytes // size}{unit}"


def _parts(text: str) -> list[tuple[str, str]]:
    """Numbers with the letters after them, or nothing when the text is not made of such pairs alone. Spaces between
    them are let through for the sake of the hint."""
    if not text or len(text) > _LONGEST_TEXT:
        return []
    parts = [(match[1], match[2]) for match in _PART.finditer(text)]
    return parts if _PART.sub("", text) == "" else []


def _clock_hint(text: str) -> str:
    """`1:30` is what a clock shows; as YAML 1.1 it would even be the number 90."""
    clock = re.fullmatch(r"([0-9]{1,3}):([0-9]{2})(?::([0-9]{2}))?", text)
    if clock is None:
        return ""
    units = ("h", "m", "s") if clock[3] else ("m", "s")
    return "did you mean " + "".join(f"{int(n)}{unit}" for n, unit in zip(clock.groups(), units, strict=False)) + "?"


def _hint(parts: list[tuple[str, str]], units: Mapping[str, int], *, sole: str) -> str:
    """The same text with the nearest units; `sole` stands in where there is none."""
    nearest = [(number, _nearest_unit(unit, units) if unit else sole) for number, unit in parts]
    if any(unit is None for _, unit in nearest):
        return f"units are {', '.join(units)}"
    return "did you mean " + "".join(f"{number}{unit}" for number, unit in nearest) + "?"


def _nearest_unit(unit: str, units: Mapping[str, int]) -> str | None:
    if unit in units:
        return unit
    spoken = _SPOKEN_UNITS.get(unit.lower())
    if spoken in units:
        return spoken
    folded = {known.lower(): known for known in units}
    for candidate in (unit.lower(), f"{unit}B".lower()):
        if candidate in folded:
            return folded[candidate]
    return next(iter(difflib.get_close_matches(unit, units, n=1)), None)


def _refused(name: str, expected: str, text: str, hint: str, code: str) -> Invalid:
    shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    bare = " without a unit" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", shown) else ""
    return Invalid(f"{name}: expected {expected}, got {shown!r}{bare}", hint=hint, code=code)
